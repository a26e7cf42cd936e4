"""The measuring protocol, parity's verdict, and the command line on a tiny checkpoint."""

import json

import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel
from typer.testing import CliRunner

import bertfast
from bertfast.bench import cases, protocol, run
from bertfast.cli import app
from bertfast.convert.families import FAMILIES

runner = CliRunner()
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 200}


@pytest.fixture
def checkpoint(tmp_path):
    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_turns_are_taken():
    order = []
    result = protocol.interleave(lambda: order.append("a"), lambda: order.append("b"), runs=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert result.runs == 3
    assert result.ratio.p20 <= result.ratio.p50 <= result.ratio.p80


def test_percentiles():
    assert protocol.Spread.of([3.0, 1.0, 2.0, 4.0, 5.0]) == protocol.Spread(1.8, 3.0, 4.2)
    with pytest.raises(ValueError, match="at least one"):
        protocol.Spread.of([])


def test_peak_memory_sees_an_allocation():
    peak = protocol.peak_memory(lambda: torch.ones(2**24))
    if peak is None:
        pytest.skip("this kernel does not tell the high-water mark")
    assert 2**25 < peak < 2**28


@pytest.mark.parametrize(("padding", "left"), [(0.0, False), (0.5, False), (0.5, True)])
def test_random_batch(padding, left):
    batch = cases.random_batch(200, 16, 128, padding, left=left)
    lengths = batch.attention_mask.sum(1)
    assert lengths.max() == 128
    assert abs(1 - lengths.float().mean().item() / 128 - padding) < 0.02
    assert bool(batch.attention_mask[:, -1 if left else 0].all())
    assert not batch.input_ids[batch.attention_mask == 0].any()


def test_default_cases_use_real_text():
    sentences = cases.default_cases()[0]
    assert sentences.padding > 0.3
    assert max(b.input_ids.shape[1] for b in sentences.batches) > 128


def test_wrong_model_fails_parity(checkpoint):
    models = run.Models(str(checkpoint))
    batch = (cases.random_batch(200, 2, 9, 0.5),)
    assert run.check_parity(models, batch, torch.float32).passed
    with torch.no_grad():
        models.fast(torch.float32).encoder.layer[1].output.dense.weight[0, 0] += 0.1
    assert not run.check_parity(models, batch, torch.float32).passed
    with torch.no_grad():
        models.fast(torch.float32).encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    assert not run.check_parity(models, batch, torch.float32).passed


def test_verify(checkpoint, tmp_path):
    done = runner.invoke(app, ["verify", str(checkpoint), "--json", str(tmp_path / "rows.json")])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {r["padding"] for r in rows} == {"none", "right", "left"}
    assert all(r["parity"]["passed"] for r in rows)


def test_verify_exits_1_on_a_wrong_model(checkpoint, monkeypatch):
    def broken(model):
        with torch.no_grad():
            model.encoder.layer[0].attention.self.value.weight.mul_(1.5)
        return model

    monkeypatch.setattr(bertfast, "optimize", broken, raising=False)
    done = runner.invoke(app, ["verify", str(checkpoint)])
    assert done.exit_code == 1
    assert "FAILED" in done.output


def test_bench_writes_table_json_and_picture(checkpoint, tmp_path):
    options = [
        "--batch",
        "2",
        "--length",
        "8",
        "--runs",
        "2",
        "--json",
        str(tmp_path / "r.json"),
        "--plot",
        str(tmp_path / "r.png"),
    ]
    done = runner.invoke(app, ["bench", str(checkpoint), *options])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["environment"]["torch"] == torch.__version__
    assert content["results"][0]["comparison"]["runs"] == 2
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "/nowhere"], "there is no folder /nowhere"),
        (["bench", "minilm", "--dtype", "int3"], "choose one of float32, bfloat16"),
        (["bench", "minilm", "--device", "cuda"], "only cpu"),
        (["bench", "minilm", "--padding", "1.5"], "padding in [0, 1)"),
        (["bench", "minilm", "--length", "9999"], "512 positions"),
    ],
)
def test_mistakes_are_named(arguments, message):
    done = runner.invoke(app, arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_other_family_and_pickled_weights_are_refused(tmp_path, checkpoint):
    AlbertModel(
        AlbertConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=99)
    ).save_pretrained(tmp_path / "other")
    said = " ".join(runner.invoke(app, ["verify", str(tmp_path / "other")]).output.split())
    assert "'albert' model; bertfast supports model_type bert, roberta, xlm-roberta" in said
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "pickled" in runner.invoke(app, ["verify", str(checkpoint)]).output


@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_verify_of_another_family(tmp_path, name):
    """RoBERTa counts positions from its padding id on, of which the random batches must know."""
    family = FAMILIES[name]
    family.model(family.tiny(max_position_embeddings=44)).save_pretrained(tmp_path / name)
    models = run.Models(str(tmp_path / name))
    assert models.positions == (42 if name == "roberta" else 44)
    assert int(models.random_batch(2, 9, 0.5).input_ids.min()) == (1 if name == "roberta" else 0)
    done = runner.invoke(app, ["verify", str(tmp_path / name)])
    assert done.exit_code == 0, done.output
    assert "24 of 24 rows within the budget" in done.output


def test_doctor():
    facts = json.loads(runner.invoke(app, ["doctor", "--json"]).output)
    assert facts["versions"]["bertfast"] == bertfast.__version__
    assert set(facts["owners"]["attention_fwd"]) == {"CPU", "CUDA"}
    said = runner.invoke(app, ["doctor"]).output
    assert said.startswith(("slow: ", "nothing is slow here"))
    assert said.index("processor") < said.index("owners")
    if facts["gpu"] is None:
        assert "GPU ops on" not in said
        assert "no GPU is seen; --gpu prints" in said
    assert "GPU ops on sm_" in runner.invoke(app, ["doctor", "--gpu"]).output


def test_version():
    assert runner.invoke(app, ["--version"]).output.strip() == bertfast.__version__
