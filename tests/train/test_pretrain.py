"""`bertfast pretrain` from a corpus to a model that transformers loads, its mistakes, and how a signal ends it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from small_corpus import write_corpus
from typer.testing import CliRunner

from bertfast.cli import app
from bertfast.models import BertForMaskedLM, BertForPreTraining
from bertfast.train import journal
from bertfast.train.errors import ConfigError
from bertfast.train.pretrain import PretrainTask
from bertfast.train.pretrain_config import PretrainConfig
from bertfast.train.settings import resolve

SMALL = ["--layers", "1", "--hidden", "32", "--heads", "2", "--token-budget", "256", "--max-seq-length", "64"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return write_corpus(folder / "train", 60), write_corpus(folder / "held", 20, seed=1)


def command(corpora, run, *options):
    return ["pretrain", str(corpora[0]), "--eval", str(corpora[1]), "--out", str(run), *SMALL, *options]


def invoke(*args):
    return CliRunner().invoke(app, args[0] if isinstance(args[0], list) else list(args))


def losses(run):
    return [(line["step"], line["loss"]) for line in journal.read(run / "log.jsonl") if line["event"] == "train"]


def test_from_a_corpus_to_transformers(corpora, tmp_path):
    transformers = pytest.importorskip("transformers")
    run = tmp_path / "run"
    options = ("--steps", "30", "--learning-rate", "3e-3", "--workers", "0", "--seed", "3", "--eval-every", "15")
    done = invoke(command(corpora, run, *options))
    assert done.exit_code == 0, done.output
    assert "done after 30 steps" in done.stdout
    assert losses(run)[-1][1] < losses(run)[0][1]
    evaluated = [line for line in journal.read(run / "log.jsonl") if line["event"] == "eval"]
    names = {"mlm_loss", "mlm_perplexity", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    assert names < evaluated[0].keys()
    assert evaluated[1]["mlm_loss"] < evaluated[0]["mlm_loss"]
    theirs, info = transformers.AutoModelForPreTraining.from_pretrained(run / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "checkpoints/step-00000030")
    ours = BertForPreTraining.from_pretrained(run / "model").eval()
    batch = tokenizer(["w1 w2 w3", "w9"], ["w4 w5", "w10 w11"], padding=True, return_tensors="pt")
    with torch.no_grad():
        a, b = ours(**batch), theirs(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(a.prediction_logits[real], b.prediction_logits[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.seq_relationship_logits, b.seq_relationship_logits, rtol=1e-4, atol=1e-5)


def test_resume_mid_epoch_with_workers_is_bit_exact(corpora, tmp_path):
    for name, stops in (("a", [None]), ("b", [5, 11, None])):
        for i, stop in enumerate(stops):
            workers = str(2 if stop else 1)  # how many there are changes nothing
            options = ["--steps", "16", "--log-every", "4", "--batches-per-step", "2", "--workers", workers]
            options += (["--set", f"train.stop_at={stop}"] if stop else []) + (["--resume"] if i else [])
            given = command(corpora, tmp_path / name, *options)
            if i == 2:  # all options as the run was begun with
                given = ["pretrain", "--out", str(tmp_path / name), "--resume"]
            done = invoke(given)
            assert done.exit_code == 0, done.output
    for kind in ("model", "optimizer", "rng"):
        one, other = (load_file(tmp_path / n / f"checkpoints/step-00000016/{kind}.safetensors") for n in "ab")
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), kind
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    states = [json.loads((tmp_path / n / "checkpoints/step-00000016/state.json").read_text()) for n in "ab"]
    assert states[0] == states[1]
    assert losses(tmp_path / "a")[-1][0] == 16


@pytest.mark.parametrize(("more", "message"), [([], "is not empty"), (["--resume"], "nothing to resume")])
def test_the_folder_is_looked_at_before_the_corpus(tmp_path, more, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    out = tmp_path / ("absent" if more else "full")
    done = invoke(["pretrain", str(tmp_path / "no-corpus"), "--out", str(out), "--steps", "1", *more])
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")


def test_masked_words_alone_from_a_checkpoint(corpora, tmp_path):
    first = ("--steps", "2", "--workers", "0")
    assert invoke(command(corpora, tmp_path / "a", *first)).exit_code == 0
    again = ["pretrain", str(corpora[0]), "--out", str(tmp_path / "b"), "--init", str(tmp_path / "a/model"), *first]
    again += ["--no-nsp", "--whole-word", "--precision", "bf16", "--optimizer", "lamb", "--max-seq-length", "64"]
    done = invoke([*again, "--token-budget", "256", "--set", "data.layout=padded"])
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "b/model/config.json").read_text())
    assert (config["architectures"], config["hidden_size"]) == (["BertForMaskedLM"], 32)
    assert isinstance(BertForMaskedLM.from_pretrained(tmp_path / "b/model"), BertForMaskedLM)


def test_evaluation_sees_the_same_masks_each_time(corpora):
    given = {"corpus": str(corpora[0]), "eval": str(corpora[1]), "out": "x", "train.steps": 1}
    sizes = {
        "model.layers": 1,
        "model.hidden": 16,
        "model.heads": 2,
        "data.token_budget": 256,
        "data.max_seq_length": 64,
    }
    tasks = [PretrainTask(resolve(PretrainConfig, flags=given | sizes | {"train.seed": seed})) for seed in (0, 1)]
    tasks[1].model.load_state_dict(tasks[0].model.state_dict())
    found = [task.evaluate(task.model.eval()) for task in (*tasks, tasks[0])]
    assert found[0] == found[1] == found[2]
    assert found[0]["mlm_perplexity"] == pytest.approx(torch.tensor(found[0]["mlm_loss"]).exp().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "1", "--set", "train.learnin_rate=1"], "did you mean learning_rate?"),
        (["--steps", "1", "--max-seq-length", "600", "--token-budget", "600"], "the model has 512 positions"),
        (["--steps", "1", "--heads", "3"], "not a multiple of num_attention_heads"),
        ([], "give either steps or epochs"),
        (["--steps", "1", "--init", "nowhere"], "nowhere"),
        (["--steps", "1", "--token-budget", "32"], "token_budget=32 is smaller than max_seq_length=64"),
        (["--steps", "1", "--set", "data.mask_prob=0"], "mask_prob=0.0: it must be above 0"),
        (["--steps", "1", "--eval", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_as_one_line(corpora, tmp_path, options, words):
    done = invoke(command(corpora, tmp_path / "run", *options))
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.startswith("bertfast: ")
    assert not (tmp_path / "run").exists()


def test_other_ranks_leave_an_error_to_the_first(corpora, tmp_path, monkeypatch):
    waits = []

    def ended(seconds):  # as torchrun does while this rank waits
        waits.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("bertfast.cli.common.time.sleep", ended)
    done = invoke(command(corpora, tmp_path / "run", "--steps", "1", "--heads", "3"))
    assert waits
    assert "bertfast:" not in done.stderr
    monkeypatch.setattr("bertfast.cli.common.time.sleep", waits.append)
    done = invoke(command(corpora, tmp_path / "run", "--steps", "1", "--heads", "3"))
    assert (done.exit_code, "not a multiple" in done.stderr) == (2, True), "nobody ended it: the error is its own"


def test_another_tokenizer_is_refused(corpora, tmp_path):
    other = write_corpus(tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer"]["sha256"] = "0"
    (other / "manifest.json").write_text(json.dumps(manifest))
    config = resolve(
        PretrainConfig, flags={"corpus": str(corpora[0]), "eval": str(other), "out": "x", "train.steps": 1}
    )
    with pytest.raises(ConfigError, match="another tokenizer"):
        PretrainTask(config)


def test_options_and_help_say_all():
    shown = invoke("pretrain", "--options").stdout
    assert "data.mask_prob" in shown
    help_text = " ".join(invoke("pretrain", "--help").stdout.split())
    for words in ("3 the loss or a gradient became NaN", "143 stopped by SIGTERM"):
        assert words in help_text


def test_sigterm_saves_and_exits_with_143(corpora, tmp_path):
    run = tmp_path / "run"
    options = ("--steps", "100000", "--log-every", "1", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "bertfast", *command(corpora, run, *options)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 1800
    while not losses(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)  # the loader's worker gets it too, as under torchrun
    _, stderr = process.communicate(timeout=1800)
    assert process.returncode == 143, stderr
    assert "stopped by signal 15 after step" in stderr
    done = losses(run)[-1][0]
    assert (run / f"checkpoints/step-{done:08d}/manifest.json").exists()
