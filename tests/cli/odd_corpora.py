"""Texts and folders that people have and no reader expects, as data: what commands of corpora must say of them and keep."""

# ruff: noqa: E501 - tables with a row a line

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odd_files import ABSENT, WHOLE_FILE


@dataclass(frozen=True)
class OddText:
    """One file, and what comes of it.

    file: its name. content: None for a folder. refused: words of the refusal, with the file's name; empty where the file is read.
    documents, left: read, and counted as left out; `left` are bad lines, or documents of JSONL. said: words of a note.
    place: of the first bad line, "in.txt:3", or empty.
    """

    name: str
    file: str
    content: bytes | None
    refused: str = ""
    documents: int = 0
    left: int = 0
    said: str = ""
    place: str = ""
    options: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        if self.content is None:
            path.mkdir()
        elif self.content != ABSENT:
            path.write_bytes(self.content)
        return path


ONE = b"the film is good. paris is the capital of france.\nthe capital is good.\n\n"
TWO = b"paris is good.\nthe film is the capital.\n\n"
GOOD = (ONE + TWO) * 4  # eight documents
ROW = json.dumps({"text": "the film is good. paris is good."}).encode()
JSONL = b"\n".join([ROW] * 6) + b"\n"
ARTICLE: dict[str, Any] = {"title": "t", "paragraphs": [{"context": "paris is good. the film is good."}]}
JAPANESE = "今日はとても良い天気です。\n明日は雨が降るでしょう。\n\n昨日は雪でした。\n今日は晴れです。\n\n" * 4

# What corpora say in other words than fine-tuning data.
WORDS = {
    "the file is empty": "holds no text",
    "Is a directory": "is a folder",
    "No such file": "does not exist",
    "carriage return": "carriage returns alone",
}


def _wholes(file: str, good: bytes, documents: int, *options: str) -> list[OddText]:
    kind = file.rpartition(".")[2]
    return [
        OddText(
            f"{kind}: {whole.name}", file, whole.change(good), WORDS.get(whole.refused, whole.refused),
            0 if whole.refused else documents, said=WORDS.get(whole.noted, whole.noted), options=options,
        )
        for whole in WHOLE_FILE
    ]  # fmt: skip


def _line(name: str, line: bytes, reason: str, left: int = 1, **more: Any) -> OddText:
    return OddText(f"txt: {name}", "in.txt", ONE[:-1] + line + b"\n\n" + TWO, "", 2, left, reason, "in.txt:3", **more)


def _row(name: str, line: bytes, reason: str, left: int = 1) -> OddText:
    content = b"\n".join([ROW, ROW, line, ROW])
    return OddText(
        f"jsonl: {name}", "in.jsonl", content, "", 3, left, reason, "in.jsonl:3" if left else "", ("--format", "jsonl")
    )


def _squad(name: str, articles: Any, documents: int, left: int = 0, said: str = "", refused: str = "") -> OddText:
    content = articles if isinstance(articles, bytes) else json.dumps({"data": articles}).encode()
    place = "in.json:article 2" if left else ""
    return OddText(f"squad: {name}", "in.json", content, refused, documents, left, said, place, ("--format", "squad"))


def _encoded(encoding: str, text: str = JAPANESE, documents: int = 8) -> list[OddText]:
    content = text.encode(encoding)
    read = OddText(
        f"{encoding} by --encoding", "in.txt", content, documents=documents, options=("--encoding", encoding)
    )
    return [read]


TEXTS = [
    *_wholes("in.txt", GOOD, 8),
    *(replace(row, name=row.name + ", paragraphs", options=("--format", "paragraphs")) for row in _wholes("in.txt", GOOD, 8)[:5]),
    *_wholes("in.jsonl", JSONL, 6, "--format", "jsonl"),
    # Bad lines take themselves out, not their documents.
    _line("latin-1 line", "le café est bon".encode("latin-1"), "invalid UTF-8"),
    _line("a zero byte", b"the\0film", "NUL character"),
    _line("half of a character", "日".encode()[:2], "invalid UTF-8"),
    _line("an overlong form", b"\xc0\xaf", "invalid UTF-8"),
    _line("a surrogate in bytes", b"\xed\xa0\x80", "invalid UTF-8"),
    OddText("txt: a control character alone", "in.txt", ONE + "\u200b\n\n".encode() + TWO, "", 2, 1, "no pieces", "in.txt:4"),
    # Read, with a word about it.
    OddText("txt: no blank line", "in.txt", GOOD.replace(b"\n\n", b"\n"), documents=1, said="the corpus is a single document"),
    OddText("txt: one line", "in.txt", b"the film is good", documents=1, said="have one sentence"),
    OddText("txt: one giant line", "in.txt", b"the film is good. " * 3000, documents=1, said="longer than 510 tokens"),
    OddText("txt: a blank line after each sentence", "in.txt", b"the film is good.\n\n" * 300, documents=300, said="of the pairs are NotNext"),
    OddText("txt: copies of a document", "in.txt", ONE * 5 + TWO, documents=6, said="4 of 6 documents (67 %) are copies"),
    OddText("txt: Japanese as English", "in.txt", JAPANESE.encode(), documents=8, said="looks Japanese"),
    OddText("txt: markers", "in.txt", b"[E1] paris [/E1] is good.\nthe film.\n\n" * 9, documents=9, said="--special-tokens"),
    OddText("txt: mixed line ends", "in.txt", b"paris.\rthe film.\r\n\r\nparis is.\ngood.\n\r\nthe film.\r\rgood.\r", documents=4),
    OddText("txt: two carriage returns", "in.txt", GOOD.replace(b"\n", b"\r\r\n"), documents=8),
    OddText("txt: line separators of Unicode", "in.txt", "paris\u2028is\x85the\x0bfilm\x0cgood\n\ngood\n".encode(), documents=2),
    OddText("txt: white space alone", "in.txt", " \t\u3000\n\u00a0\n".encode(), "holds no text"),
    OddText("txt: bad lines alone", "in.txt", b"\xff\n\xfe\xff\n", "invalid UTF-8", place="in.txt:1"),
    OddText("txt: gzip by another name", "in.log", gzip.compress(GOOD), documents=8),
    OddText("txt: gz that is none", "in.txt.gz", GOOD, documents=8),
    OddText("pdf", "in.pdf", b"%PDF-1.7\n" + GOOD, "is a PDF"),
    OddText("parquet", "in.parquet", b"PAR1" + bytes(200), "Parquet"),
    OddText("bzip2", "in.txt.bz2", b"BZh91AY&SY" + bytes(range(200)), "compressed by bzip2"),
    OddText("xz", "in.txt.xz", b"\xfd7zXZ\0" + bytes(range(200)), "compressed by xz"),
    OddText("json as text", "in.json", JSONL, "is JSON by its name"),
    # Encodings.
    *_encoded("utf-16"), *_encoded("utf-16-be"), *_encoded("utf-32"), *_encoded("cp932"), *_encoded("euc_jp"),
    *_encoded("iso2022_jp"), *_encoded("cp1252", "le café est bon.\noù est-il?\n\n" * 5, 5), *_encoded("utf-8"),
    OddText("cp932 unsaid", "in.txt", JAPANESE.encode("cp932"), "--encoding cp932", place="in.txt:1"),
    OddText("euc_jp unsaid", "in.txt", JAPANESE.encode("euc_jp"), "--encoding euc_jp", place="in.txt:1"),
    OddText("cp1252 unsaid", "in.txt", "le café est bon.\nla film\n\n".encode("cp1252") * 5, documents=5, left=5, said="give --encoding cp1252", place="in.txt:1"),
    OddText("utf-16 that breaks off", "in.txt", JAPANESE.encode("utf-16")[:-1], "truncated", options=("--encoding", "utf-16")),
    OddText("another encoding", "in.txt", b"paris\n\x81\xff\n", documents=1, left=1, said="invalid cp932", place="in.txt:2", options=("--encoding", "cp932")),
    OddText("no encoding", "in.txt", GOOD, "--encoding klingon: Python knows no", options=("--encoding", "klingon")),
    OddText("an encoding of bytes", "in.txt", GOOD, "--encoding base64: Python knows no", options=("--encoding", "base64")),
    # JSONL
    _row("broken", b'{"text": "a"', "malformed JSON"),
    _row("nested beyond reason", b"[" * 100_000, "malformed JSON"),
    *(_row(f"a line {word.decode()}", word, "wrong type") for word in (b"[1]", b"3", b"null", b'"a"')),
    _row("no text", b'{"txt": "a"}', "missing field"),
    *(_row(f"text {value}", json.dumps({"text": json.loads(value)}).encode(), "wrong type") for value in ("null", "3", "true", '{"a": 1}', "[3]")),
    _row("empty text", b'{"text": " "}', "empty document"),
    _row("the text twice", b'{"text": "paris", "text": "film"}', "stands twice"),
    _row("half of a surrogate pair", b'{"text": "\\ud800"}', "invalid UTF-8"),
    _row("a zero byte", b'{"text": "a\\u0000b"}', "NUL character"),
    _row("latin-1", b'{"text": "caf\xe9"}', "invalid UTF-8"),
    _row("a blank line", b"  ", "", left=0),
    OddText("jsonl: one JSON over many lines", "in.json", json.dumps([{"text": "a"}], indent=1).encode(), "one JSON over many lines", options=("--format", "jsonl")),
    OddText("jsonl: SQuAD", "in.json", json.dumps({"data": [ARTICLE]}).encode(), "--format squad", options=("--format", "jsonl")),
    OddText("jsonl: another field", "in.jsonl", JSONL, "see --field", options=("--format", "jsonl", "--field", "body")),
    # SQuAD
    _squad("good", [ARTICLE] * 3, 3),
    _squad("a number as article", [ARTICLE, 3, ARTICLE], 2, 1, "missing field"),
    _squad("no paragraphs", [ARTICLE, {"title": "x"}, ARTICLE], 2, 1, "missing field"),
    _squad("a context that is null", [ARTICLE, {"paragraphs": [{"context": None}]}, ARTICLE], 2, 1, "wrong type"),
    _squad("no context", [ARTICLE, {"paragraphs": [{"qas": []}]}, ARTICLE], 2, 1, "missing field"),
    _squad("a list", b"[]", 0, refused="not SQuAD-shaped"),
    _squad("null", b"null", 0, refused="not SQuAD-shaped"),
    _squad("broken", b'{"data": [', 0, refused="not SQuAD-shaped"),
    _squad("nested beyond reason", b"[" * 100_000, 0, refused="not SQuAD-shaped"),
    _squad("lines of JSON", JSONL, 0, refused="--format jsonl"),
    _squad("no article", [], 0, refused="holds no text"),
    _squad("latin-1", b'{"data": [{"paragraphs": [{"context": "caf\xe9"}]}]}', 0, refused="not SQuAD-shaped"),
    _squad("utf-16", json.dumps({"data": [ARTICLE]}).encode("utf-16"), 0, refused="UTF-16"),
    _squad("gzip", gzip.compress(json.dumps({"data": [ARTICLE]}).encode()), 1),
]  # fmt: skip


# --- folders ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """A change of one file of a folder."""

    name: str
    change: Callable[[Path], Any]


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [
    Damage("absent", lambda path: path.unlink()),
    Damage("empty", lambda path: path.write_bytes(b"")),
    Damage("cut in half", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
    Damage("zero bytes", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    Damage("other bytes", lambda path: path.write_bytes(bytes(range(256)) * 8)),
    Damage("null", lambda path: path.write_bytes(b"null")),
    Damage("a list", lambda path: path.write_bytes(b"[1, 2]")),
    Damage("an empty object", lambda path: path.write_bytes(b"{}")),
    Damage("a folder", _folder_instead),
]


def copied(good: Path, to: Path, file: str, damage: Damage) -> Path:
    shutil.copytree(good, to)
    damage.change(to / file)
    return to


@dataclass(frozen=True)
class OddTokenizer:
    """A change of a good tokenizer's folder: `said` is what refuses it, or, with `read`, what a note says."""

    name: str
    change: Callable[[Path], Any]
    said: str
    read: bool = False


def _set(file: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(content | values), "utf-8")

    return change


def _config(name: str, said: str, read: bool = False, **values: Any) -> OddTokenizer:
    return OddTokenizer(f"config: {name}", _set("tokenizer_config.json", **values), said, read)


def _added(name: str, said: str, read: bool = False, **tokens: Any) -> OddTokenizer:
    return OddTokenizer(f"added_tokens.json: {name}", _set("added_tokens.json", **tokens), said, read)


def _vocab(name: str, change: Callable[[list[str]], list[str]], said: str, read: bool = False) -> OddTokenizer:
    def run(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        path = folder / "vocab.txt"
        path.write_text("\n".join(change(path.read_text("utf-8").split("\n"))), "utf-8")

    return OddTokenizer(f"vocab.txt: {name}", run, said, read)


def _json(name: str, said: str, read: bool = False, **values: Any) -> OddTokenizer:
    return OddTokenizer(f"tokenizer.json: {name}", _set("tokenizer.json", **values), said, read)


TOKENIZERS = [
    _config("a number as class", "tokenizer_class is 5", tokenizer_class=5),
    _config("SentencePiece", "subword_tokenizer_type is 'sentencepiece'", tokenizer_class="BertJapaneseTokenizer", subword_tokenizer_type="sentencepiece", word_tokenizer_type="mecab"),
    _config("sudachi words", "sudachi", tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="sudachi"),
    _config("text as a switch", "do_lower_case is 'yes'", do_lower_case="yes"),
    _config("null as a switch", "tokenize_chinese_chars is None", tokenize_chinese_chars=None),
    _config("a number as unk_token", "unk_token is 5", unk_token=5),
    _config("an unknown mask token", "has no <mask>", mask_token="<mask>"),
    _config("a list as decoder", "added_tokens_decoder holds list", added_tokens_decoder=["[E1]"]),
    _config("text in the decoder", "added_tokens_decoder holds str", added_tokens_decoder={"70": "[E1]"}),
    _config("no content in the decoder", "where a token is due", added_tokens_decoder={"70": {"lstrip": True}}),
    _config("a flag that is text", "must be true or false", added_tokens_decoder={"70": {"content": "[E1]", "lstrip": "no"}}),
    _config("a name as id", "is no id of a token", added_tokens_decoder={"last": {"content": "[E1]"}}),
    _config("extra tokens as text", "must be a list of tokens", extra_special_tokens="[E1]"),
    _config("extra tokens as numbers", "where a token is due", extra_special_tokens=[3]),
    _config("another case than tokenizer.json", "disagree on normalizer", True, do_lower_case=False),
    _config("more tokens than the model", "its tokenizer has", extra_special_tokens=["[E1]", "[E2]"]),
    _added("a fraction as id", "is no id of a token", **{"[E1]": 70.5}),
    _added("a name as id", "is no id of a token", **{"[E1]": "x"}),
    _added("an id below zero", "is no id of a token", **{"[E1]": -1}),
    _added("null as id", "is no id of a token", **{"[E1]": None}),
    _added("one beyond the model", "its tokenizer has", **{"[E1]": 68}),
    _added("an id beyond reason", "its tokenizer has", **{"[E1]": 10**15}),
    _added("a piece's id", "the files give other ids", True, paris=5),
    OddTokenizer("special_tokens_map.json: no token", _set("special_tokens_map.json", mask_token=[1]), "mask_token is [1]"),
    OddTokenizer("special_tokens_map.json: another mask", _set("special_tokens_map.json", mask_token="<mask>"), "has no <mask>"),
    _vocab("no [MASK]", lambda pieces: [piece for piece in pieces if piece != "[MASK]"], "has no [MASK]"),
    _vocab("a piece twice", lambda pieces: [*pieces[:8], "paris", *pieces[9:]], "repeat an earlier piece", True),
    _vocab("too many pieces", lambda pieces: [*pieces[:-1], *"ÀÁÂ", ""], "its tokenizer has"),
    _json("BPE", "BPE", model={"type": "BPE", "vocab": {}, "merges": []}),
    _json("no vocabulary", "no vocabulary", model={"type": "WordPiece"}),
    _json("a list as vocabulary", "no vocabulary", model={"type": "WordPiece", "vocab": ["a"]}),
    _json("text as ids", "no vocabulary", model={"type": "WordPiece", "vocab": {"a": "1"}}),
    _json("an id beyond reason", "an id 1099511627776", model={"type": "WordPiece", "vocab": dict(zip(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], [0, 1, 2, 3, 1 << 40], strict=True))}),
    _json("one id for two pieces", "the same id", model={"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "b": 5}}),
    _json("added tokens as numbers", "added_tokens holds 3", added_tokens=[3]),
    _json("another pre_tokenizer", "disagree on pre_tokenizer", True, pre_tokenizer={"type": "WhitespaceSplit"}),
    _json("another normalizer", "disagree on normalizer", True, normalizer={"type": "NFKC"}),
]  # fmt: skip
