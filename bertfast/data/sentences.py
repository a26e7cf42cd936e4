"""Paragraphs to sentences, by rules that can be read: English and Japanese.

A rule that is unsure keeps text together: a sentence too long costs next-sentence prediction little, one cut in half is noise.
"""

import re
from collections import Counter
from collections.abc import Callable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A full stop after these never ends a sentence ...
TITLES = _words(
    "mr mrs ms mx dr prof st mt ft gen col lt cpl sgt capt cmdr adm rev hon gov sen rep pres supt "
    "vs no nos fig figs vol pp ch sec cf al approx ca e.g i.e viz"
)
# ... and after these, and after initials such as "U.S.", only before a word that starts sentences far more often than names.
ABBREVIATIONS = _words(
    "etc inc ltd co corp bros jr sr esq dept univ assn est a.m p.m ph.d jan feb mar apr jun jul aug sep sept oct nov dec"
)
STARTERS = _words(
    "the a an this that these those it he she we they i you his her its their our my in on at for from after before when while "
    "as if but and however although there here by with since during both all some many most one"
)
INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
# Stops, what closes with them, and white space. In text split in words ("said . ") white space stands before the stop too.
ENGLISH_STOP = re.compile(r"([.!?…]+)([\"'”’)\]»]*)(\s+|$)")
OPENING = "\"'“‘([«¿¡"

JAPANESE_STOP = re.compile(r"[。｡！？!?]+")
BRACKETS = {
    "「": "」",
    "『": "』",
    "（": "）",
    "(": ")",
    "【": "】",
    "〈": "〉",
    "《": "》",
    "［": "］",
    "｢": "｣",
    "“": "”",
}


def _abbreviated(before: str, after: str) -> bool:
    """Whether a full stop between `before` and `after` belongs to an abbreviation."""
    words = before.split()
    if not words or before[-1:].isspace():
        # Split in words: the stop stands alone, and an abbreviation ("H.", "Mr.") keeps its own.
        return False
    word = words[-1].lstrip(OPENING).lower()
    if word in TITLES:
        return True
    if word in ABBREVIATIONS or INITIALS.fullmatch(word):
        following = re.match(r"\w+", after.lstrip(OPENING))
        # "Henry V. The" is not told from "J. The": the pronoun I ends sentences, other single letters are initials.
        return word != "i" and not (
            following and following.group().lower() in STARTERS and following.group()[0].isupper()
        )
    return False


def split_english(paragraph: str) -> list[str]:
    """Sentences of an English paragraph: after . ! ? … and closing quotes, before something that can start one."""
    sentences, start = [], 0
    for stop in ENGLISH_STOP.finditer(paragraph):
        end = stop.end(2)
        after = paragraph[stop.end() : stop.end() + 40]
        # In text split in words a quote after the stop closes where an odd number of them stands before it.
        if re.match(r"[\"”]\s", after) and paragraph.count('"', start, end) % 2 == 1:
            end = stop.end() + 1
            after = paragraph[end : end + 40].lstrip()
        first = after.lstrip(OPENING + " ")[:1]
        apart = stop.start() > 0 and paragraph[stop.start() - 1].isspace()
        if not first or not (
            first.isupper() or first.isdigit() or not first.isascii() or (apart and not first.isalpha())
        ):
            continue
        if stop.group(1) == "." and _abbreviated(paragraph[max(start, stop.start() - 40) : stop.start()], after):
            continue
        sentences.append(paragraph[start:end].strip())
        start = end
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _bracketed(paragraph: str) -> list[tuple[int, int]]:
    """Outermost pairs of brackets; one that never closes is no pair, so it keeps nothing together."""
    waiting: list[tuple[str, int]] = []
    pairs: list[tuple[int, int]] = []
    wanted: Counter[str] = Counter()
    for index, char in enumerate(paragraph):
        if char in BRACKETS:
            waiting.append((BRACKETS[char], index))
            wanted[BRACKETS[char]] += 1
        elif wanted[char]:
            closing = ""
            while closing != char:
                closing, start = waiting.pop()
                wanted[closing] -= 1
            while pairs and pairs[-1][0] > start:
                pairs.pop()
            pairs.append((start, index))
    return pairs


def split_japanese(paragraph: str) -> list[str]:
    """Sentences of a Japanese paragraph: after 。！？ outside brackets; what stands in 「」 stays within its sentence."""
    pairs = _bracketed(paragraph)
    sentences, start, pair = [], 0, 0
    for stop in JAPANESE_STOP.finditer(paragraph):
        while pair < len(pairs) and pairs[pair][1] < stop.start():
            pair += 1
        if pair < len(pairs) and pairs[pair][0] < stop.start():
            continue
        following = paragraph[stop.end() : stop.end() + 1]
        if stop.group()[-1] in "!?" and following.isascii() and following:  # "Yahoo! JAPAN"
            continue
        sentences.append(paragraph[start : stop.end()].strip())
        start = stop.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


SPLITTERS: dict[str, Callable[[str], list[str]]] = {"en": split_english, "ja": split_japanese}


def split_sentences(paragraph: str, language: str = "en") -> list[str]:
    """Sentences of one paragraph, without the white space around them; `language` is "en" or "ja"."""
    return SPLITTERS[language](paragraph)
