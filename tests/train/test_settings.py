"""Configuration from YAML, flags and --set, and what each mistake says."""

import pytest
import yaml

from bertfast.train.config import TrainConfig
from bertfast.train.errors import ConfigError
from bertfast.train.finetune_config import config_class
from bertfast.train.pretrain_config import PretrainConfig
from bertfast.train.settings import changes, describe, resolve, to_yaml

FLAGS = {"corpus": "c", "out": "o"}


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_later_sources_win_and_defaults_fill_the_rest(tmp_path):
    path = write(tmp_path, "corpus: a\nout: b\ntrain:\n  steps: 5\n  learning_rate: 1e-4\n  seed: 1\n")
    flags = {"train.seed": 2, "train.steps": 6, "out": None}
    found = resolve(PretrainConfig, path, flags, ["train.steps=7", "train.schedule=cosine"])
    assert (found.corpus, found.out) == ("a", "b")
    assert (found.train.seed, found.train.steps, found.train.schedule) == (2, 7, "cosine")
    assert found.train.learning_rate == 1e-4, "YAML 1.1 reads 1e-4 as text"
    assert found.data.max_seq_length == 128


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "train:\n  steps: 5\n  learnin_rate: 1\n",
            ["run.yaml:3", "train.learnin_rate", "did you mean learning_rate?"],
        ),
        ("trian:\n  steps: 5\n", ["run.yaml:1", "unknown option trian", "did you mean train?"]),
        ("cuda_graphs: false\n", ["run.yaml:1", "unknown option cuda_graphs; did you mean train.cuda_graphs?"]),
        ("nothing_like_it: false\n", ["unknown option nothing_like_it; known here: corpus, "]),
        ("train:\n  steps: many\n", ["run.yaml:2", "train.steps must be a whole number or nothing", "'many'"]),
        ("train:\n  steps: 1.5\n", ["run.yaml:2", "whole number"]),
        ("train:\n  steps: true\n", ["train.steps", "True"]),
        ("train:\n  steps: 5\n  compile: 1\n", ["run.yaml:3", "true or false"]),
        ("train:\n  steps: 5\n  optimizer: sgd\n", ["run.yaml:3", "one of adamw, lamb", "'sgd'"]),
        ("train:\n  steps: 0\n", ["run.yaml:2", "train.steps must be at least 1"]),
        ("train:\n  steps: 5\n  learning_rate: .nan\n", ["run.yaml:3", "at least 0"]),
        ("train:\n  steps: 5\n  beta1: 1\n", ["run.yaml:1", "beta1 and beta2 must be below 1"]),
        ("train:\n  steps: 5\n  epochs: 2\n", ["run.yaml:1", "either steps or epochs"]),
        ("train: 5\n", ["run.yaml:1", "train", "section"]),
        ("train:\n  steps: 5\n  steps: 6\n", ["run.yaml:3", "train.steps stands twice", "run.yaml:2"]),
        ("- 1\n", ["expected sections"]),
        ("a: [1\n", ["no valid YAML", "line"]),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        resolve(PretrainConfig, path, FLAGS)
    for word in words:
        assert word in str(caught.value)


def test_a_value_in_place_of_a_section_is_found_under_a_flag(tmp_path):
    path = write(tmp_path, "train:\n  steps: 1\nmodel: 5\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: model is a section of options, found 5; --layers"):
        resolve(PretrainConfig, path, FLAGS | {"model.layers": 2})


def test_what_is_wrong_is_told_before_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml:2: data\.token_budget must be a whole number"):
        resolve(PretrainConfig, write(tmp_path, "data:\n  token_budget: many\ntrain: {steps: 1}\n"))


def test_mistakes_in_flags_and_sets(tmp_path):
    with pytest.raises(ConfigError, match=r"--steps: train\.steps must be at least 1"):
        resolve(PretrainConfig, None, FLAGS | {"train.steps": -1})
    with pytest.raises(ConfigError, match="expected name=value"):
        resolve(PretrainConfig, None, FLAGS, ["train.steps"])
    with pytest.raises(ConfigError, match=r"--set train\.step=3: unknown option train\.step; did you mean steps"):
        resolve(PretrainConfig, None, FLAGS, ["train.step=3"])
    with pytest.raises(ConfigError, match=r"CORPUS \(or `corpus:` in --config\) is missing: folder that"):
        resolve(PretrainConfig, None, {"out": "o", "train.steps": 1})
    for kind, fields in (("text", {}), ("qa", {"model": "m"})):
        name = r"--train \(or `train_file:` in --config\)" if fields else r"--model \(or `model:` in --config\)"
        with pytest.raises(ConfigError, match=rf"^{name} is missing: "):
            resolve(config_class(kind), None, fields)
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(PretrainConfig, tmp_path / "absent.yaml", FLAGS)


def test_what_is_written_loads_again(tmp_path):
    config = resolve(PretrainConfig, None, FLAGS, ["train.steps=3", "train.learning_rate=1.5e-5", "model.init=日本"])
    assert resolve(PretrainConfig, write(tmp_path, to_yaml(config))) == config
    assert yaml.safe_load(to_yaml(config))["train"]["learning_rate"] == 1.5e-5


def test_what_passes_is_not_written_down(tmp_path):
    config = resolve(PretrainConfig, None, FLAGS, ["train.steps=3", "train.stop_at=1"])
    assert resolve(PretrainConfig, write(tmp_path, to_yaml(config))).train.stop_at is None


def test_changes_name_what_matters_alone():
    old = resolve(PretrainConfig, None, FLAGS, ["train.steps=3"])
    free = resolve(PretrainConfig, None, FLAGS, ["train.steps=3", "train.log_every=1", "out=x", "data.workers=3"])
    other = resolve(PretrainConfig, None, FLAGS, ["train.steps=4", "model.hidden=8"])
    assert changes(old, free) == []
    assert changes(old, other) == ["model.hidden: None -> 8", "train.steps: 3 -> 4"]


def test_describe_has_every_option():
    text = describe(PretrainConfig)
    assert "corpus" in text
    assert "required" in text
    for name in TrainConfig.__dataclass_fields__:
        assert f"train.{name} " in text
