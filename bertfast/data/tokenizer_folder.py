"""The files of a tokenizer's folder, read and checked, and warnings where they say different things."""

import json
import warnings
from pathlib import Path
from typing import Any

from bertfast.data.added_tokens import TokenizerError

MOST_IDS = 1 << 24  # a vocabulary is a list with a place for each id


def parse_json(files: dict[str, bytes], folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files among `files`. TokenizerError for one that is none, or no object."""
    parsed: dict[str, dict[str, Any]] = {}
    for name in (name for name in files if name.endswith(".json")):
        try:
            value = json.loads(files[name])
        except (ValueError, RecursionError) as error:
            raise TokenizerError(
                f"{folder / name} is not JSON ({error or 'nested too deeply'}); copy the tokenizer's files again"
            ) from None
        if not isinstance(value, dict):
            raise TokenizerError(
                f"{folder / name} holds {type(value).__name__} where an object is due; copy the tokenizer's files again"
            )
        parsed[name] = value
    return parsed


def vocabulary(content: bytes, name: str = "vocab.txt") -> dict[str, int]:
    """Pieces of a vocab.txt, one a line, to the number of their line."""
    try:
        pieces = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is not UTF-8 ({error}); copy the tokenizer's files again") from None
    if pieces[-1] == "":
        pieces.pop()
    ids = {piece.rstrip("\r"): index for index, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        twice = next(piece.rstrip("\r") for index, piece in enumerate(pieces) if ids[piece.rstrip("\r")] != index)
        warnings.warn(
            f"{name}: {len(pieces) - len(ids)} lines repeat an earlier piece, such as {twice!r}; the last one's id counts, as it "
            "does in transformers",
            stacklevel=2,
        )
    return ids


def pieces_of_json(state: dict[str, Any], where: str) -> dict[str, int]:
    """Piece to id, of the content of a tokenizer.json, which `where` names in errors.

    Raises:
        TokenizerError: it holds no WordPiece vocabulary, or one with impossible ids.
    """
    model = state.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{where} has no object 'model'; copy the tokenizer's files again")
    if (kind := model.get("type", "WordPiece")) != "WordPiece":
        raise TokenizerError(f"{where} holds a {kind} model; BERT's pieces are WordPiece")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise TokenizerError(f"{where} has no vocabulary of pieces and ids; copy the tokenizer's files again")
    if (highest := max(vocab.values(), default=0)) >= MOST_IDS:
        raise TokenizerError(f"{where}: the vocabulary has an id {highest}; fix its ids")
    return vocab


def tell_differences(where: str, state: dict[str, Any], backend: Any, class_name: str) -> None:
    """A warning where tokenizer.json says something that its folder's class in transformers does not follow."""
    used = json.loads(backend.to_str())
    written = {"normalizer": state.get("normalizer"), "pre_tokenizer": state.get("pre_tokenizer")}
    model = {name: value for name, value in state["model"].items() if name in used["model"] and name != "vocab"}
    pairs = [(name, value, used[name]) for name, value in written.items()]
    pairs += [(name, value, used["model"][name]) for name, value in model.items()]
    if differing := [
        f"{name} {_short(value)} (used: {_short(other)})" for name, value, other in pairs if value != other
    ]:
        warnings.warn(
            f"{where} and tokenizer_config.json disagree on {'; '.join(differing)}: with {class_name}, transformers and bertfast "
            "take tokenizer_config.json, and its usual settings where it names none. Write the intended settings there",
            stacklevel=2,
        )


def tell_other_pieces(folder: Path, files: dict[str, bytes], vocab: dict[str, int]) -> None:
    """A warning where vocab.txt was changed, or damaged, and tokenizer.json was not."""
    try:
        other = vocabulary(files["vocab.txt"], str(folder / "vocab.txt")) if "vocab.txt" in files else vocab
        difference = sorted(other.items() ^ vocab.items(), key=lambda pair: pair[1])
        what = f"they differ, first in id {difference[0][1]}" if difference else ""
    except TokenizerError as error:
        what = str(error)
    if what:
        warnings.warn(
            f"{folder}: vocab.txt is not used beside tokenizer.json, as it is not in transformers, and its pieces are not the same "
            f"({what}): take tokenizer.json out if vocab.txt is right",
            stacklevel=2,
        )


def tell_collisions(folder: Path, backend: Any) -> None:
    """A warning where added tokens are one once normalised: which of them `tokenizers` finds changes from process to process."""
    seen: dict[str, str] = {}
    for _, token in sorted(backend.get_added_tokens_decoder().items()):
        if token.normalized:
            other = seen.setdefault(backend.normalizer.normalize_str(token.content), token.content)
            if other != token.content:
                warnings.warn(
                    f"{folder}: the added tokens {other!r} and {token.content!r} are the same once normalised, and which of them a "
                    'text gets is chance: give one of them "normalized": false, or take it out',
                    stacklevel=2,
                )


def tell_moved_ids(folder: Path, stated: dict[int, Any], vocab: dict[str, int]) -> None:
    """A warning where added tokens have other ids in transformers than the files give them."""
    ids = ((token.content, index, vocab.get(token.content, index)) for index, token in stated.items())
    if moved := [f"{text!r} {index} (used: {used})" for text, index, used in ids if used != index]:
        warnings.warn(
            f"{folder}: the files give other ids than transformers to {', '.join(moved[:5])}: it numbers added tokens from the end "
            "of the vocabulary on, and so does bertfast. A model that was trained with the ids of the files is misread",
            stacklevel=2,
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 160 else text[:157] + "..."
