"""What a user should be told of a corpus that can be read and quietly means less than it seems to."""

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from bertfast.data.corpus import Corpus
from bertfast.data.encodings import KANA
from bertfast.data.lines import LIKELY
from bertfast.data.pairs import IS_NEXT, LABEL, PairOptions, make_pairs

MARKER = re.compile(r"\[/?[^\W\d_][\w-]*\]|</?[^\W\d_][\w-]*>")
MARKERS_KEPT = 100  # of a shard's, the most frequent
_SHOWN = 6
_SHARE = 1000  # a marker that recurs stands in two documents, and in one of so many
LONGEST = 510  # pieces: the sentence that fills a sample of 512
_MEASURED = 4096  # documents whose pairs are made
_FAR = 0.1  # from half
_KANA, _UNKNOWN, _BEYOND, _REPEATED = 0.05, 0.05, 0.01, 0.05


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if part * 200 >= whole or not part else f"{100 * part / whole:.2g} %"


def looks_japanese(kana: int, characters: int) -> bool:
    return kana > _KANA * characters


def count_kana(text: str) -> int:
    return len(KANA.findall(text))


def japanese_remark(kana: int, characters: int, advice: str) -> str:
    """Kana tell Japanese from Chinese: a vocabulary for English cuts it into single characters."""
    return f"{share(kana, characters)} of the text's characters are kana, so it looks Japanese, and it is read as English: {advice}"


def text_remarks(
    counts: Mapping[str, int], notes: Mapping[str, int], skipped: Mapping[str, int], options: Mapping
) -> list[str]:
    """Of a build: `counts` are documents, sentences and tokens, `notes` what `encode` counted, `options` those of the build."""
    remarks = []
    documents, tokens = counts["documents"], max(1, counts["tokens"])
    if looks_japanese(notes.get("kana", 0), notes.get("looked_at", 0)):
        remarks.append(
            japanese_remark(
                notes["kana"],
                notes["looked_at"],
                "build with a Japanese tokenizer, such as `bertfast data vocab --language ja` makes",
            )
        )
    if (unknown := notes.get("unknown", 0)) > _UNKNOWN * tokens:
        remarks.append(
            f"{share(unknown, tokens)} of the tokens are [UNK], from which nothing is learnt: the vocabulary is of another text"
        )
    if (beyond := notes.get("beyond", 0)) > _BEYOND * tokens:
        remarks.append(
            f"{notes['long']:,} sentences are longer than {LONGEST} tokens, and a sample can take no more of one: what is beyond, "
            f"{share(beyond, tokens)} of all tokens, is never read as part of a pair. "
            + (
                "Lines were taken for sentences; give --splitter sentences if they are paragraphs"
                if options["splitter"] == "lines"
                else "The splitter found no end of a sentence in them"
            )
        )
    if marker := _cut_markers(notes, documents):
        remarks.append(marker)
    if (repeated := notes.get("repeated", 0)) > _REPEATED * documents:
        remarks.append(
            f"{repeated:,} of {documents:,} documents ({share(repeated, documents)}) are copies of another one, word for word, "
            "and are learnt by heart: leave them out"
        )
    if notes.get("cut"):
        remarks.append(
            f"{notes['cut']:,} times a document was too long to be held in memory and went on as another one"
        )
    return remarks


def _cut_markers(notes: Mapping[str, int], documents: int) -> str | None:
    markers = Counter({name.removeprefix("marker "): n for name, n in notes.items() if name.startswith("marker ")})
    by_count = sorted(markers.items(), key=lambda item: (-item[1], item[0]))
    often = [f"{name} in {n:,} documents" for name, n in by_count if n > 1 and n * _SHARE >= documents]
    if not often:
        return None
    more = f" and {len(often) - _SHOWN} more" if len(often) > _SHOWN else ""
    return (
        f"markers are cut into pieces as any text is: {', '.join(often[:_SHOWN])}{more}; those that are to be one token each are "
        "named with --special-tokens, here and in `data vocab`"
    )


def pairs_remark(corpus: Corpus, options: PairOptions, seed: int = 0) -> str | None:
    """Where the pairs that pre-training would draw are far from half IsNext: how far, why, and what to do; else None.

    Measured on the pairs of at most 4,096 documents, as the first epoch with this seed draws them.
    """
    if not options.nsp:
        return None
    documents = np.unique(np.linspace(0, corpus.documents - 1, min(_MEASURED, corpus.documents)).astype(np.int64))
    labels = make_pairs(corpus, documents, options, seed, 0)[:, LABEL]
    pairs = int((labels >= 0).sum())
    following = int((labels == IS_NEXT).sum())
    single = int((np.diff(corpus.document_sentences) == 1).sum())
    alone = f"{single:,} of {corpus.documents:,} documents ({share(single, corpus.documents)}) have one sentence"
    advice = "give longer documents (a blank line stands between documents, not sentences), or pre-train with --no-nsp"
    if corpus.documents == 1:
        why = (
            "all are IsNext: the corpus is a single document, so that no pair can take its second segment from another"
        )
        return f"next-sentence prediction has nothing to learn here, {why}; {advice}" if pairs else f"{alone}: {advice}"
    if not pairs or abs(following / pairs - 0.5) <= _FAR + pairs**-0.5:
        return None
    common, name = max((following, "IsNext"), (pairs - following, "NotNext"))
    why = f"{alone}, which can only begin a NotNext pair; " if 4 * single > corpus.documents else ""
    return (
        f"{share(common, pairs)} of the pairs are {name} (of {pairs:,} measured), and who always says so has that next-sentence "
        f"accuracy without having learnt anything: {why}{advice}"
    )


def encoding_remark(first_details: list[str]) -> str | None:
    """What encoding lines that are no UTF-8 are likely in, from the details of bad lines; None where they do not say."""
    guesses = Counter(detail.rpartition(LIKELY)[2].strip() for detail in first_details if LIKELY in detail)
    if not guesses:
        return None
    name, count = guesses.most_common(1)[0]
    of = f"of {len(first_details):,} lines that are no UTF-8, {count:,} read as text in {name}"
    return f"{of}: if the file is, give --encoding {name}"
