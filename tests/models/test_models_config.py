"""BertConfig: fields and defaults of transformers', what is kept, what is refused; and model FLOPs, counted by hand."""

import dataclasses
import json

import pytest
import transformers

from bertfast.models import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertModel, ConfigError, flops


def test_defaults_are_transformers():
    stock, mine = transformers.BertConfig(), BertConfig()
    for field in dataclasses.fields(mine):
        if field.name != "extra":
            assert getattr(mine, field.name) == getattr(stock, field.name), field.name


def test_unknown_keys_are_kept_and_written_back(tmp_path):
    stock = transformers.BertConfig(
        hidden_size=24, num_attention_heads=3, id2label={0: "a", 1: "b", 2: "c"}, mine=[1, 2]
    )
    stock.save_pretrained(tmp_path)
    read = BertConfig.from_pretrained(tmp_path)
    assert (read.hidden_size, read.num_labels, read.extra["mine"]) == (24, 3, [1, 2])
    assert read.label2id == {"a": 0, "b": 1, "c": 2}
    read.save_pretrained(tmp_path / "again")
    theirs, written = (json.loads((f / "config.json").read_text()) for f in (tmp_path, tmp_path / "again"))
    assert written == {**theirs, "label2id": {"a": 0, "b": 1, "c": 2}}  # which transformers leaves at null here
    assert BertConfig.from_dict(read.to_dict()) == read


def test_overrides(tmp_path):
    BertConfig(id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path).num_labels == 3
    four = BertConfig.from_pretrained(tmp_path, num_labels=4, hidden_dropout_prob=0.0)
    assert (four.num_labels, four.id2label[3], four.hidden_dropout_prob) == (4, "LABEL_3", 0.0)
    assert BertConfig.from_pretrained(tmp_path, id2label={0: "x"}).num_labels == 1
    assert BertConfig(label2id={"y": 1, "x": 0}).id2label == {0: "x", 1: "y"}
    with pytest.raises(ConfigError, match="'hiden_size' is no option"):
        BertConfig.from_pretrained(tmp_path, hiden_size=3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'.*gelu_new"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 12"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, got 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be in \[0, 1\)"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a number"),
        ({"pad_token_id": 10**6}, "pad_token_id 1000000 is outside"),
        ({"num_labels": 3, "id2label": {"0": "a"}}, "num_labels 3"),
        ({"id2label": {"0": "a", "2": "b"}}, r"names \[0, 2\]"),
        ({"problem_type": "guessing"}, "problem_type must be one of"),
    ],
)
def test_refused(values, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=said) as caught:
        BertConfig.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_files_that_are_no_config(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        BertConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        BertConfig.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="Hugging Face format"):
        BertConfig.from_pretrained(tmp_path / "absent")


def test_heads_refuse_what_they_do_not_compute():
    small = {
        "vocab_size": 9,
        "hidden_size": 4,
        "num_attention_heads": 1,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
    }
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        BertForMaskedLM(BertConfig(**small, tie_word_embeddings=False))
    with pytest.raises(ConfigError, match="num_labels is 3"):
        BertForQuestionAnswering(BertConfig(**small, num_labels=3))


def test_a_model_has_a_config_of_its_own():
    config = BertConfig(vocab_size=9, hidden_size=4, num_attention_heads=1, intermediate_size=4, num_hidden_layers=1)
    model = BertModel(config)
    assert model.config == config
    assert model.config is not config
    assert model.config.extra is not config.extra


def test_flops_of_training_bert():
    """24 E^2 + 4 S E a token and layer, the head on 15 % of the tokens: 0.545 and 0.588 GFLOP a token of BERT-base."""
    base, large = (
        BertConfig(),
        BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    )
    for config, seqlen, want in ((base, 128, 0.545), (base, 512, 0.588), (large, 128, 1.879), (large, 512, 1.992)):
        tokens = 20 * seqlen
        got = flops.training_flops(config, tokens, 20 * seqlen**2, masked=tokens * 15 // 100) / tokens / 1e9
        assert got == pytest.approx(want, abs=6e-4)


def test_flops_of_mixed_lengths_are_the_sum_of_their_parts():
    config = BertConfig(intermediate_size=1000)
    parts = [flops.forward_flops(config, n, n * n, masked=2) for n in (3, 50)]
    assert flops.forward_flops(config, 53, 9 + 2500, masked=4) == sum(parts)
    layer = 3 * 2 * (4 * 768 * 768 + 2 * 768 * 1000) + 4 * 768 * 9
    assert parts[0] == 12 * layer + 2 * 2 * 768 * (768 + 30522)


def test_the_folder_of_a_run_is_not_its_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder of a checkpoint"):
        BertConfig.from_pretrained(tmp_path)
    BertConfig().save_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=f"did you mean {tmp_path / 'model'}\\?"):
        BertConfig.from_pretrained(tmp_path)
