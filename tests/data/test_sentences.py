"""Sentence splitting, case by case."""

import pytest

from bertfast.data.sentences import split_sentences

ENGLISH = [
    "One sentence.| Another one! | A third? |Yes.",
    "Mr. Smith met Dr. Jones at 5 p.m. on Monday.| They left.",
    "It costs 3.14 dollars.| Really.",
    "He lives in the U.S. Army base.| She moved to the U.S.| The base is closed.",
    "J. R. R. Tolkien wrote it.| It sold.",
    'He said "Stop."| She did.',
    'He said "Stop . " | She did .',
    "They form a species , H. americanus . | It may grow to 0.7 m ( 24 in ) . | <unk> is rare .",
    "Apples, pears, etc. are fruit.| Wait... what?",
    "“Go!”| “Why?”| (He left.)| Done",
    "See Fig. 3 and No. 5.| 1984 was a year.",
    "no capital. stays together",
    "",
]
JAPANESE = [
    "私は学生です。|東京に住んでいます。",
    "「行くよ。すぐ。」と言った。|本当？！|はい",
    "彼は（未確認。要出典）と書いた。|終わり。",
    "「閉じない括弧。|それでも切る。",
    "Yahoo! JAPANを使う。|3.14は円周率。",
    "『本「中。」の題。』を読む。|次。",
    "改行なし",
    "　",
]


def check(marked: str, language: str) -> None:
    want = [part.strip() for part in marked.split("|") if part.strip()]
    assert split_sentences(marked.replace("|", ""), language) == want


@pytest.mark.parametrize("marked", ENGLISH)
def test_english(marked):
    check(marked, "en")


@pytest.mark.parametrize("marked", JAPANESE)
def test_japanese_sentences(marked):
    check(marked, "ja")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_nothing_is_lost(language):
    text = 'A. b? C! "D." (E.) 「あ。」い。 う！え ' * 20
    joined = "".join(split_sentences(text, language))
    assert joined.replace(" ", "") == text.replace(" ", "")


def test_long_text_takes_linear_time():
    assert len(split_sentences("Word after word. " * 20_000)) == 20_000
    assert len(split_sentences("「" * 2000 + "あ。" * 20_000, "ja")) == 20_000
