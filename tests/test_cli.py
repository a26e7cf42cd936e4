"""The command line: exit status, what is said of mistakes, and that they are found before anything is measured."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

import bertfast
from bertfast.cli import app
from bertfast.cli.common import one_line, plain
from bertfast.tasks.registry import TASKS

runner = CliRunner()


@pytest.fixture
def checkpoint(tmp_path):
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=200
    )
    BertModel(config).save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def said(done):
    return " ".join(done.output.split())


def test_python_m_runs_the_command_line():
    done = subprocess.run([sys.executable, "-m", "bertfast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == bertfast.__version__


@pytest.mark.parametrize(
    ("typed", "offered"), [("bertfast data ", {"build", "show", "vocab"}), ("bertfast fill-mask --to", {"--top"})]
)
def test_a_shell_completes_commands_and_options(typed, offered):
    env = {"_BERTFAST_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = runner.invoke(app, [], prog_name="bertfast", env=env)
    assert set(done.output.split()) == offered, done.output


def test_the_script_of_completion_can_be_had_and_installed():
    done = runner.invoke(app, [], prog_name="bertfast", env={"_BERTFAST_COMPLETE": "source_bash"})
    assert "complete -o default -F _bertfast_completion bertfast" in said(done)
    assert "--install-completion" in runner.invoke(app, ["--help"]).output


def commands(group, words=()):
    """The words of every command, and of every group of them."""
    yield words
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*words, name))


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_has_its_help(words):
    """Texts of options are rich's markup there: a bracket may be lost, or raise."""
    done = runner.invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "--help" in done.output
    marked = {("data", "vocab"), ("data", "build"), *(("finetune", task) for task in TASKS)}
    assert ("[E1],[/E1]" in done.output) == (words in marked)
    training = words == ("pretrain",) or (len(words) == 2 and words[0] == "finetune")
    assert ("--no-cuda-graphs" in said(done)) == training
    assert ("out of memory (the message names a token budget that would fit)" in said(done)) == training


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_help_cuts_no_text_in_a_narrow_terminal(words):
    done = runner.invoke(app, [*words, "--help"], env={"COLUMNS": "80"})
    texts = re.sub(r"--[\w-]+\u2026", "", done.output)  # without the long names, whose column is narrow
    assert "\u2026" not in texts, done.output


def test_an_error_of_several_lines_is_one(capsys):
    with pytest.raises(typer.Exit), one_line(ValueError):
        raise ValueError("a  b:\n\t size mismatch\r\n for c\n")
    assert capsys.readouterr().err == "bertfast: a  b: size mismatch for c\n"


def test_several_models_are_measured_in_one_run(checkpoint, tmp_path):
    out = tmp_path / "new" / "r.json"
    options = ["--batch", "1", "--length", "4", "--runs", "1", "--padding", "0", "--json", str(out)]
    done = runner.invoke(app, ["bench", checkpoint, checkpoint, *options])
    assert done.exit_code == 0, done.output
    results = json.loads(out.read_text())["results"]
    assert len(results) == 2
    assert results[0]["coverage"] == {"fast": 4, "total": 4, "reasons": []}
    assert results[0]["prepacked"] >= 0


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_checkpoint_that_optimize_refuses_is_one_line(checkpoint, command):
    config = Path(checkpoint, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"position_embedding_type": "relative_key"}))
    done = runner.invoke(app, [command, checkpoint])
    assert done.exit_code == 2, done.output
    assert 'position_embedding_type is "relative_key"' in said(done)


def test_bench_exits_1_and_still_writes_where_parity_fails(checkpoint, tmp_path, monkeypatch):
    def broken(model):
        with torch.no_grad():
            model.pooler.dense.weight.mul_(1.5)
        return model

    monkeypatch.setattr(bertfast, "optimize", broken, raising=False)
    out = tmp_path / "r.json"
    done = runner.invoke(app, ["bench", checkpoint, "--batch", "2", "--length", "4", "--runs", "1", "--json", str(out)])
    assert done.exit_code == 1
    assert "FAILED" in done.output
    assert json.loads(out.read_text())["results"][0]["parity"]["passed"] is False


def test_a_model_that_stayed_stock_is_not_praised_silently(checkpoint, monkeypatch):
    monkeypatch.setattr(bertfast, "optimize", lambda model: model, raising=False)
    done = runner.invoke(app, ["verify", checkpoint])
    assert "0 of 4 modules took the fast path" in said(done)


def test_shapes_without_a_model_are_refused():
    done = runner.invoke(app, ["bench", "--batch", "4", "--padding", "0"])
    assert done.exit_code == 2
    assert "--batch, --padding: the default suite has its own shapes" in said(done)


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_target_that_is_a_folder_is_refused_first(command, tmp_path):
    # The model does not exist either: the target is looked at before it.
    done = runner.invoke(app, [command, "/nowhere", "--json", str(tmp_path)])
    assert done.exit_code == 2
    assert "this is a folder" in said(done)


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_target_whose_folder_cannot_be_made_is_refused(option, tmp_path):
    (tmp_path / "file").write_text("")
    done = runner.invoke(app, ["bench", "/nowhere", option, str(tmp_path / "file" / "out")])
    assert done.exit_code == 2
    assert "the folder cannot be made" in said(done)


@pytest.mark.parametrize(
    ("config", "message"),
    [(None, "has no config.json"), ("{", "cannot be read as JSON"), ('{"model_type": "bert"}', "no .safetensors file")],
)
def test_a_folder_that_is_no_checkpoint(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    done = runner.invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 2
    assert message in said(done)


def test_damaged_weights_are_one_line_not_a_traceback(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    done = runner.invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 2
    assert "could not load" in said(done)
    assert "Traceback" not in done.output


def test_missing_transformers_is_named(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = runner.invoke(app, ["verify", checkpoint])
    assert done.exit_code == 2
    assert "-e '.[hf]'" in said(done)


def test_json_has_no_infinity():
    assert plain({"a": [float("inf"), 1.0, (float("nan"),)]}) == {"a": [None, 1.0, [None]]}
