"""Commands made of dataclasses: names, defaults and limits of flags, and the names that `pretrain` has had."""

from dataclasses import dataclass, field

import pytest
import typer
from typer.testing import CliRunner

from bertfast.cli import app
from bertfast.cli.flags import command, flags_of, simple
from bertfast.options import option

PRETRAIN = {
    "--out", "--eval", "--resume", "--config", "--set", "--options", "--init", "--layers", "--hidden", "--heads",
    "--token-budget", "--max-seq-length", "--nsp", "--no-nsp", "--whole-word", "--pieces", "--workers", "--steps", "--epochs",
    "--batches-per-step", "--optimizer", "--learning-rate", "--lr", "--warmup-steps", "--precision", "--seed", "--threads",
    "--parallel", "--log-every", "--eval-every", "--save-every", "--tensorboard",
}  # fmt: skip


@dataclass(kw_only=True)
class Inner:
    rate: float = option(0.5, "of things", low=0, flags=("--lr",))
    colour: str = option("red", choices=("red", "green"))


@dataclass(kw_only=True)
class Outer:
    files: list[str] | None = option(None, "to read", argument=True)
    name: str = option(help="of it")
    words: list[str] | None = option(None, "such as [E1],[/E1]")
    text: list[str] | None = option(None, "again and again", repeated=True)
    loud: bool = option(False, "a switch", flags=("--loud",))
    deep: bool = option(True, "two sides")
    bad: str = option("stop", "lines", choices={"skip": "leave out", "stop": "end there"})
    secret: int = option(3, hidden=True)
    inner: Inner = field(default_factory=Inner)


def called(made, *arguments, status=0):
    only = typer.Typer()
    only.command()(made)
    done = CliRunner().invoke(only, list(arguments), env={"COLUMNS": "120"})
    assert done.exit_code == status, done.output
    return " ".join(done.output.split())


def given(*arguments):
    values = []
    called(simple("it", Outer, values.append, "Help."), *arguments)
    return values[0]


def test_values():
    assert given("--name", "x") == Outer(name="x")
    made = given(
        "a", "b", "--name", "x", "--words", "[E1], [/E1]", "--text", "1,2", "--text", "3", "--no-deep", "--lr", "2"
    )
    words = ["[E1]", "[/E1]"]
    assert made == Outer(name="x", files=["a", "b"], words=words, text=["1,2", "3"], deep=False, inner=Inner(rate=2.0))
    assert given("--name", "x", "--loud", "--colour", "green") == Outer(
        name="x", loud=True, inner=Inner(colour="green")
    )


def test_mistakes():
    made = simple("it", Outer, lambda given: None, "Help.")
    assert "--rate: inner.rate must be at least 0, got -1.0" in called(made, "--name", "x", "--rate", "-1", status=2)
    assert "inner.colour must be one of red, green" in called(made, "--name", "x", "--colour", "blue", status=2)
    assert "--name" in called(made, status=2), "what has no default is asked for"
    for flag in ("--secret", "--no-loud"):
        assert "No such option" in called(made, "--name", "x", flag, status=2)


def test_what_no_flag_gives_a_file_may():
    values = []
    called(command("it", flags_of(Outer), values.append, "Help."))
    assert set(values[0].values()) == {None}
    assert set(values[0]) == {"files", "name", "words", "text", "loud", "deep", "bad", "inner.rate", "inner.colour"}


def test_help_has_text_choices_and_default():
    said = called(simple("it", Outer, lambda given: None, "What it does."), "--help")
    for words in ("What it does.", "such as [E1],[/E1]", "red | green; default red", "of things; default 0.5"):
        assert words in said


def test_help_says_what_each_choice_does():
    (option,) = (flag.annotation.__metadata__[0] for flag in [flags_of(Outer)["bad"]])
    assert option.help == "lines; stop (default): end there; skip: leave out"


def test_choices_are_completed():
    (complete,) = (flag.annotation.__metadata__[0].autocompletion for flag in [flags_of(Outer)["colour"]])
    assert complete("g") == ["green"]


def flags(words):
    found = typer.main.get_command(app)
    for word in words:
        found = found.commands[word]
    return {name for each in found.params for name in (*each.opts, *each.secondary_opts)}


def test_pretrain_has_the_flags_that_it_had():
    assert flags(["pretrain"]) >= {*PRETRAIN, "corpus"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["data", "build"],
            {"sources", "--tokenizer", "--out", "--format", "--field", "--holdout", "--bad-lines", "--workers"},
        ),
        (["data", "vocab"], {"--size", "--lowercase", "--no-lowercase", "--limit-alphabet", "--special-tokens"}),
        (["data", "show"], {"corpus", "--text", "--png", "--sample", "--masked", "--sequences", "--seed"}),
        (
            ["bench"],
            {"models", "--device", "--dtype", "--batch", "--length", "--padding", "--runs", "--json", "--plot"},
        ),
        (
            ["predict"],
            {"model", "--out", "--text", "--question", "--context", "--n-best", "--threshold", "--fields", "--task"},
        ),
        (["fill-mask"], {"model", "text", "--top", "--json", "--device"}),
    ],
)
def test_others_have_theirs(words, expected):
    assert flags(words) >= expected
