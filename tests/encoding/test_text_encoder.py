"""The encoder's embeddings: the same whatever stands beside a text, and those of the stock model."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from encoding_cases import PIECES, TEXTS, save_checkpoint, save_recipe

import bertfast
from bertfast import _ext
from bertfast.convert.families import FAMILIES
from bertfast.encoding import Encoder, RecipeError
from bertfast.ops import packed_linear
from bertfast.testing import assert_within_budget


def changed(encoder: Encoder, **more) -> Encoder:
    """The same model with other settings, without loading it again."""
    other = copy.copy(encoder)
    for name, value in more.items():
        setattr(other, name, value)
    return other


def order_of(count: int, seed: int):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose products are long enough to be added in blocks."""
    return save_checkpoint(tmp_path_factory.mktemp("wide"), sizes={"hidden_size": 96, "intermediate_size": 384})


@pytest.mark.parametrize(
    ("precision", "pooling"),
    [("float32", "mean"), ("bfloat16", "mean"), ("int8", "mean"), ("float32", "cls"), ("float32", "lasttoken"), ("float32", "max")],
)  # fmt: skip
def test_bits_depend_on_neither_batch_nor_order_nor_threads(wide, threads, precision, pooling):
    if _ext.why_absent() is not None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if not packed_linear.available(dtype, 96, int8=precision == "int8"):
        pytest.skip(f"no kernels of ours for {precision} on this processor")
    encoder = Encoder(wide, device="cpu", precision=precision, pooling=pooling)
    whole = changed(encoder, token_budget=1 << 20).encode(TEXTS)
    order = order_of(len(TEXTS), 1)
    for budget, count in ((1, 1), (40, 1), (300, 2)):
        threads(count)
        shuffled = changed(encoder, token_budget=budget).encode([TEXTS[i] for i in order])
        np.testing.assert_array_equal(shuffled, whole[order])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_stock(tmp_path, family):
    """Against the stock model text by text, without padding; and each runs fast and in any batch alike."""
    from transformers import AutoModel

    folder = save_checkpoint(tmp_path / "checkpoint", family, normalize=False)
    texts = TEXTS[:9]
    for pooling in ("mean", "cls"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # as where it would not run fast
            encoder = Encoder(folder, device="cpu", pooling=pooling)
        results = {}
        for dtype in (torch.float32, torch.float64):
            stock = AutoModel.from_pretrained(folder, dtype=dtype).eval()
            rows = []
            for ids in encoder.tokenize(texts).ids:
                with torch.no_grad():
                    hidden = stock(torch.from_numpy(ids).long()[None]).last_hidden_state[0]
                rows.append(hidden.mean(0) if pooling == "mean" else hidden[0])
            results[dtype] = torch.stack(rows)
        embeddings = torch.from_numpy(encoder.encode(texts))
        assert_within_budget(embeddings, results[torch.float32], results[torch.float64], f"{family}, {pooling}")
    assert "0 of" not in str(bertfast.report(encoder.model)), "the family is fast"


def test_a_single_token_is_all_that_the_last_layer_makes(checkpoint):
    """The layers are told what the pooling reads, in batches that are large enough; with hooks they are not."""
    encoder = Encoder(checkpoint, device="cpu", pooling="cls")
    seen = []
    hidden = encoder.hidden
    encoder.hidden = lambda ids, lengths: seen.append(hidden(ids, lengths)) or seen[-1]
    first = encoder.encode(TEXTS)
    assert not seen[-1][:, 1:].any()
    assert seen[-1][:, 0].any()
    handle = encoder.model.register_forward_hook(lambda *call: None)
    np.testing.assert_allclose(encoder.encode(TEXTS), first, atol=1e-6)
    assert seen[-1][0, 1:].any()
    handle.remove()


def test_normalised_as_the_checkpoint_says_or_the_caller(checkpoint):
    assert np.allclose(np.linalg.norm(Encoder(checkpoint, device="cpu").encode(TEXTS[:3]), axis=1), 1.0)
    plain = Encoder(checkpoint, device="cpu", normalize=False).encode(TEXTS[:3])
    assert not np.allclose(np.linalg.norm(plain, axis=1), 1.0, atol=1e-3)


def test_no_texts_and_half_precision(encoder):
    assert encoder.encode([]).shape == (0, 32)
    half = encoder.encode(TEXTS[:2], dtype="float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, encoder.encode(TEXTS[:2]).astype(np.float16))


def test_one_text_is_no_list_of_texts(encoder):
    with pytest.raises(TypeError, match="put it into a list"):
        encoder.encode("one text")


@pytest.mark.parametrize("dtype", ["int32", "float64", "bfloat16", np.float64])
def test_other_dtypes_are_refused(encoder, dtype):
    for call in (lambda: encoder.encode(TEXTS[:2], dtype), lambda: encoder.encode_tokens(encoder.tokenize([]), dtype)):
        with pytest.raises(ValueError, match=r"dtype .* is not one that embeddings .*: choose float32 or float16"):
            call()


@pytest.mark.parametrize(
    ("texts", "said"),
    [([3], r"text 0 is a number \(3\)"), (["a", None], "text 1 is null"), ([["a"]], "text 0 is a list")],
)
def test_what_is_no_text_is_named(checkpoint, encoder, texts, said):
    for each in (encoder, changed(encoder, prompt="a ")):
        with pytest.raises(TypeError, match=f"{said}, and text is encoded"):
            each.encode(texts)


def test_a_text_of_no_tokens_counts_as_an_unknown_one(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    encoder = Encoder(folder, device="cpu")
    assert [ids.tolist() for ids in encoder.tokenize(["", "a"]).ids] == [[PIECES.index("[UNK]")], [PIECES.index("a")]]
    assert np.isfinite(encoder.encode(["", "a"])).all()


def test_truncated_texts_are_counted_and_as_their_beginning(checkpoint):
    encoder = Encoder(checkpoint, device="cpu", max_length=6)
    long, exact = "a b c d e f g", "a b c d"
    np.testing.assert_array_equal(*encoder.encode([long, exact]))
    assert encoder.truncated == 1


def test_prompts(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint")
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "q q ", "passage": "p "}, "default_prompt_name": "passage"})
    )
    plain = Encoder(folder, device="cpu", prompt="")
    for options, prompt in (({}, "p "), ({"prompt_name": "query"}, "q q "), ({"prompt": "z "}, "z ")):
        embeddings = Encoder(folder, device="cpu", **options).encode(TEXTS[:4])
        np.testing.assert_array_equal(embeddings, plain.encode([prompt + text for text in TEXTS[:4]]))
    with pytest.raises(RecipeError, match=r"no prompt 'code'; there are query, document, passage: choose one"):
        Encoder(folder, device="cpu", prompt_name="code")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_prompt_that_is_not_pooled(tmp_path, pooling):
    folder = save_checkpoint(tmp_path / "checkpoint", pooling=pooling, normalize=False, include_prompt=False)
    encoder = Encoder(folder, device="cpu", prompt="q r ")
    ids = encoder.tokenize(["a b"]).ids[0]
    hidden = encoder.hidden(torch.from_numpy(ids).long()[None], torch.tensor([len(ids)]))[0]
    kept = hidden[3:]  # behind [CLS] q r
    expected = kept.mean(0) if pooling == "mean" else kept[0]
    np.testing.assert_allclose(encoder.encode(["a b"])[0], expected.numpy(), atol=1e-6)


def test_lower_case(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert PIECES.index("[UNK]") in Encoder(folder, device="cpu").tokenize(["AB"]).ids[0]
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}))
    encoder = Encoder(folder, device="cpu")
    np.testing.assert_array_equal(*encoder.tokenize(["AB", "ab"]).ids)


@pytest.mark.parametrize(("stated", "expected"), [(None, 60), (9, 9), (99, 64)])
def test_length_of_the_files_within_the_positions(tmp_path, stated, expected):
    """Of the tokenizer where sentence-transformers' file has none."""
    folder = save_checkpoint(tmp_path / "checkpoint")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": stated}))
    encoder = Encoder(folder, device="cpu")
    assert encoder.tokenizer.max_length == expected
    assert encoder.encode(["a " * 200]).shape == (1, 32)


def test_a_family_that_is_not_known_runs_as_it_is(tmp_path):
    from transformers import GPT2Config, GPT2Model

    folder = save_checkpoint(tmp_path / "checkpoint")
    config = GPT2Config(vocab_size=len(PIECES), n_positions=64, n_embd=32, n_layer=1, n_head=2)
    GPT2Model(config).save_pretrained(folder)
    save_recipe(folder, "lasttoken")
    with pytest.warns(UserWarning, match="runs as it is, not faster"):
        encoder = Encoder(folder, device="cpu")
    assert encoder.encode(TEXTS[:3]).shape == (3, 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "half"}, "precision 'half' is unknown"),
        ({"precision": "float16"}, "float16 is not for cpu"),
        ({"pooling": "median"}, "pooling 'median' is unknown"),
        ({"token_budget": 0}, "token_budget must be a positive integer, got 0"),
        ({"token_budget": "8"}, "token_budget must be a positive integer, got '8'"),
        ({"max_length": 65}, "has 64 positions"),
        ({"max_length": 2}, "2 of these are special tokens"),
    ],
)
def test_options_that_cannot_be(checkpoint, options, said):
    with pytest.raises(RecipeError, match=said):
        Encoder(checkpoint, device="cpu", **options)


def test_folders_that_are_no_checkpoint(tmp_path, checkpoint):
    for path in (tmp_path / "absent", "./absent", "../a/b", "~/absent", "a/b/c"):
        with pytest.raises(RecipeError, match=f"there is no folder {path}"):
            Encoder(path, device="cpu")
    with pytest.raises(RecipeError, match=r"model\.safetensors is a file: name the folder"):
        Encoder(checkpoint / "model.safetensors", device="cpu")
    with pytest.raises(RecipeError, match="is not a folder, and the hub has no such model or cannot be reached"):
        Encoder("owner/absent", device="cpu")
    with pytest.raises(RecipeError, match="a model with its owner, as sentence-transformers/all-MiniLM-L6-v2"):
        Encoder("all-MiniLM-L6-v2", device="cpu")
    with pytest.raises(RecipeError, match=r"no config\.json"):
        Encoder(tmp_path, device="cpu")


def test_an_encoder_with_a_decoder(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    with pytest.raises(RecipeError, match=r"is an encoder with a decoder, .*: use sentence-transformers"):
        Encoder(folder, device="cpu")


def test_what_a_tokenizer_says_that_is_not_given_to_the_model(tmp_path):
    """Token types of a single text; and small letters asked of a tokenizer in Python."""
    folder = save_checkpoint(tmp_path / "checkpoint")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 1}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    names = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_input_names": names}))
    with pytest.raises(RecipeError, match="gives a single text token types other than 0"):
        Encoder(folder, device="cpu")
    in_python(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(
        RecipeError, match="do_lower_case is for tokenizers of the library tokenizers, and this one is in Python"
    ):
        Encoder(folder, device="cpu")


def test_missing_weights_are_no_random_ones(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_checkpoint(tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"no weights for encoder\.layer\.1\.output\.dense\.weight"):
        Encoder(folder, device="cpu")


def test_an_adapter_whose_weights_are_elsewhere(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"is an adapter, .*: use sentence-transformers"):
        Encoder(folder, device="cpu")


@pytest.mark.parametrize(("file", "what"), [("config.json", ""), ("tokenizer_config.json", "the tokenizer of ")])
def test_what_transformers_cannot_load(tmp_path, file, what):
    """Its error on one line, and what to do next."""
    folder = save_checkpoint(tmp_path / "checkpoint")
    (folder / "tokenizer.json").write_text("none")
    (folder / file).write_text('{"model_type": "none", "tokenizer_class": "NoneTokenizer"}')
    with pytest.raises(RecipeError) as error:
        Encoder(folder, device="cpu")
    said = str(error.value)
    assert said.startswith(f"transformers cannot load {what}{folder} (")
    assert said.endswith("else copy the checkpoint again")
    assert len(said.splitlines()) == 1


def in_python(folder):
    """The checkpoint with a tokenizer as that of Japanese BERT is, here over single characters."""
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    config = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "basic",
        "subword_tokenizer_type": "character",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "do_lower_case": True}))


def test_a_tokenizer_in_python(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint")
    fast = Encoder(folder, device="cpu", max_length=6)
    in_python(folder)
    slow = Encoder(folder, device="cpu", max_length=6)
    assert not hasattr(slow.tokenizer._tokenizer, "backend_tokenizer")
    texts = ["a b", "a b c d e", "a b c d"]
    for ids, expected in zip(slow.tokenize(texts).ids, fast.tokenize(texts).ids, strict=True):
        np.testing.assert_array_equal(ids, expected)
    assert (slow.truncated, fast.truncated) == (1, 1)
