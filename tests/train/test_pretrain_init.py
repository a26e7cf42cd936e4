"""`pretrain --init`: whose sizes, whose words, and what is recorded of it."""

import shutil

import pytest
from small_corpus import write_corpus
from typer.testing import CliRunner

from bertfast.cli import app
from bertfast.data.tokenizer import load_tokenizer
from bertfast.models import BertConfig, BertForPreTraining, BertModel
from bertfast.train.errors import ConfigError
from bertfast.train.pretrain import PretrainTask
from bertfast.train.pretrain_config import PretrainConfig
from bertfast.train.settings import resolve


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "train", 60)


def begin_from(corpus, folder, *sets):
    return PretrainTask(
        resolve(
            PretrainConfig,
            flags={"corpus": str(corpus), "out": "x", "model.init": str(folder), "train.steps": 1},
            sets=sets,
        )
    )


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    """With tokenizer files, and a dropout that is no default."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = BertConfig(65, 32, 1, 2, 48, max_position_embeddings=128, hidden_dropout_prob=0.3)
    BertForPreTraining(sizes).save_pretrained(folder)
    load_tokenizer(corpus / "tokenizer").save(folder)
    return folder


def test_sizes_of_a_checkpoint_are_kept_and_recorded(corpus, checkpoint):
    found = begin_from(corpus, checkpoint, "model.layers=1").config.model
    assert (found.hidden, found.layers, found.heads, found.feed_forward, found.positions) == (32, 1, 2, 48, 128)
    assert found.dropout is None, "hidden states 0.3, attention 0.1: no one number is true"
    changed = begin_from(corpus, checkpoint, "model.dropout=0.2")
    assert changed.config.model.dropout == 0.2
    assert changed.model.config.attention_probs_dropout_prob == changed.model.config.hidden_dropout_prob == 0.2
    scratch = PretrainTask(
        resolve(PretrainConfig, flags={"corpus": str(corpus), "out": "x", "model.layers": 1, "train.steps": 1})
    )
    assert (scratch.config.model.hidden, scratch.config.model.feed_forward) == (768, 3072)
    assert scratch.config.model.dropout == 0.1


@pytest.mark.parametrize("given", ["layers=2", "hidden=16", "heads=4", "feed_forward=32", "positions=512"])
def test_other_sizes_than_the_checkpoints_are_refused(corpus, checkpoint, given):
    with pytest.raises(ConfigError, match="with init the sizes are the checkpoint's"):
        begin_from(corpus, checkpoint, f"model.{given}")


def test_a_checkpoint_of_another_vocabulary_is_refused(corpus, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    words = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]) + "\n")
    with pytest.raises(ConfigError, match="another tokenizer than the corpus was built with"):
        begin_from(corpus, folder)
    (folder / "vocab.txt").unlink()
    assert begin_from(corpus, folder).model.config.vocab_size == 65
    BertForPreTraining(BertConfig(72, 32, 1, 2, 48)).save_pretrained(folder)
    with pytest.raises(ConfigError, match="has 72 words and the corpus's tokenizer 65"):
        begin_from(corpus, folder)
    load_tokenizer(corpus / "tokenizer").save(folder)  # the same words: the table is padded
    assert begin_from(corpus, folder).model.config.vocab_size == 72


def test_a_head_that_the_checkpoint_lacks_is_a_note(corpus, tmp_path):
    BertModel(BertConfig(65, 32, 1, 2, 48)).save_pretrained(tmp_path / "headless")
    given = ["pretrain", corpus, "--out", tmp_path / "run", "--init", tmp_path / "headless"]
    done = CliRunner().invoke(app, [*map(str, given), "--steps", "1", "--workers", "0", "--token-budget", "128"])
    assert done.exit_code == 0, done.output
    (note,) = [line for line in done.stderr.splitlines() if "has no weights for" in line]
    assert note.startswith("note: ")
    assert "UserWarning" not in done.stderr
