"""Builds that end in a refusal: what they say, and what they leave behind."""

import pytest

pytest.importorskip("datasets")

from bertfast.data.build import build
from bertfast.data.build_options import BuildError, Options
from bertfast.data.sources import FileSource
from bertfast.data.tokenizer import SPECIAL_ROLES, tokenizer_from_files
from bertfast.data.vocab import VocabularyOptions, tokenizer_files


@pytest.fixture
def tokenizer():
    return tokenizer_from_files(tokenizer_files([*SPECIAL_ROLES.values(), "word"], VocabularyOptions()))


def test_a_refused_build_keeps_what_is_done(tmp_path, tokenizer):
    text = tmp_path / "text.txt"
    text.write_bytes(b"word word\n\n" * 200 + b"\xff\n")
    refuse = Options(refuse_bad_lines=True, shard_characters=400)
    with pytest.raises(BuildError, match="invalid UTF-8"):
        build(FileSource([text], "text"), tokenizer, tmp_path / "out", refuse)
    assert list(tmp_path.glob("out.building/shards/*/record.json"))


def test_no_good_line_says_why_and_leaves_nothing(tmp_path, tokenizer):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"\xff\n\xfe\n\0\n")
    said = r"not taken were 1 NUL character, 2 invalid UTF-8; the first is .*bad\.txt:1: invalid UTF-8 \(byte 0 of the line"
    with pytest.raises(BuildError, match=said) as caught:
        build(FileSource([path], "text"), tokenizer, tmp_path / "out", Options())
    assert "share" not in str(caught.value)
    path.write_text("word\n")
    build(FileSource([path], "text"), tokenizer, tmp_path / "out", Options())  # the corrected file is not refused
