"""The tokens that stand beside a vocabulary's pieces, read from wherever a tokenizer folder keeps them, and written.

transformers has four places: `added_tokens_decoder` in tokenizer_config.json, which makes it pass by the others;
special_tokens_map.json; added_tokens.json; and "added_tokens" in tokenizer.json. `gather` reads them in its order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DECODER = "added_tokens_decoder"
EXTRA_NAMES = ("extra_special_tokens", "additional_special_tokens")  # the first is transformers 5's own, both read both
NAMED = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerError(ValueError):
    """A tokenizer folder that is incomplete or not understood."""


@dataclass
class Added:
    """What a folder's files say.

    stated: tokens under the id that a file gives them.
    named: what unk_token and the like are, in the order in which those that no other place has are added.
    extra: further special tokens, without an id.
    """

    stated: dict[int, Any]
    named: dict[str, Any]
    extra: list[Any]

    def special_contents(self) -> set[str]:
        return {text_of(token) for token in (*self.named.values(), *self.extra)}

    def in_order(self) -> list[Any]:
        """All of them as transformers adds them to a tokenizer of `tokenizers`: by stated id, then named, then the rest."""
        from tokenizers import AddedToken

        named = {text_of(token) for token in self.named.values()}
        tokens: list[Any] = []
        for _, token in sorted(self.stated.items()):
            if token.content in named and not token.special:
                token.special = True
            tokens.append(token)
        contents = {token.content for token in tokens}
        for token in (*self.named.values(), *self.extra):
            if text_of(token) not in contents:
                contents.add(text_of(token))
                tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        return tokens


def text_of(token: Any) -> str:
    """The text of a token that is text or an AddedToken."""
    return token if isinstance(token, str) else token.content


def as_token(value: Any, where: str, **more: Any) -> Any:
    """The string or AddedToken that a file writes for a token; `more` are flags over its own. TokenizerError for another thing."""
    from tokenizers import AddedToken

    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise TokenizerError(
            f"{where} holds {json.dumps(value)[:80]} where a token is due: text, or an object with 'content'"
        )
    flags = {name: value[name] for name in FLAGS if name in value} | more
    if wrong := [name for name, flag in flags.items() if not isinstance(flag, bool)]:
        raise TokenizerError(f"{where}: {', '.join(wrong)} of token {value['content']!r} must be true or false")
    return AddedToken(value["content"], **flags)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokenizerError(
            f"{where} holds {type(value).__name__} where an object is due; copy the tokenizer's files again"
        )
    return value


def _id(value: Any, where: str) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value) or int(value) < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise TokenizerError(f"{where}: {value!r} is no id of a token; ids are whole numbers from 0 on") from None
    return int(value)


def _extras(value: Any, where: str) -> tuple[list[Any], dict[str, Any]]:
    """Further special tokens: a list of them, or an object with a name for each."""
    if isinstance(value, dict) and "content" not in value:
        return [], {name: as_token(token, where) for name, token in value.items()}
    if not isinstance(value, list):
        raise TokenizerError(f"{where}: {EXTRA_NAMES[0]} is {type(value).__name__}; it must be a list of tokens")
    return [as_token(token, where) for token in value], {}


def gather(config: dict[str, Any], files: Mapping[str, dict[str, Any]]) -> Added:
    """The tokens of a folder whose parsed JSON files are `files`, and `config` its tokenizer_config.json.

    TokenizerError where a file holds something else than tokens and ids.
    """
    from tokenizers import AddedToken

    where = "tokenizer_config.json"
    settings = dict(config)
    ours, older = EXTRA_NAMES
    value = config.get(ours) or config.get(older)
    extra, more_named = _extras(value, where) if value else ([], {})
    stated: dict[int, Any] = {}
    if DECODER in config:
        place = f"{where}: {DECODER}"
        for index, token in _object(config[DECODER], place).items():
            stated[_id(index, place)] = as_token(_object(token, place), place)
    else:
        legacy = files.get("special_tokens_map.json", {})
        where = "special_tokens_map.json" if legacy else where
        for name in NAMED:
            if name in legacy:
                value = legacy[name]
                settings[name] = as_token(value, where, special=True) if isinstance(value, dict) else value
        if value := legacy.get(ours):
            tokens, named_there = _extras(value, where)
            extra += [token for token in tokens if text_of(token) not in map(text_of, extra)]
            more_named |= named_there
        special = {text_of(settings[name]) for name in NAMED if isinstance(settings.get(name), (str, AddedToken))}
        special |= {text_of(token) for token in extra}
        if not extra and (value := legacy.get(older)):  # under this name transformers adds them, but only after it has
            extra, _ = _extras(value, where)  # decided which tokens of added_tokens.json are special
        for token, index in files.get("added_tokens.json", {}).items():
            flags = {"normalized": token not in special, "special": token in special}
            stated[_id(index, "added_tokens.json")] = AddedToken(token, **flags)
        tokens = files.get("tokenizer.json", {}).get("added_tokens") or []
        for token in tokens if isinstance(tokens, list) else [tokens]:
            place = "tokenizer.json: added_tokens"
            stated[_id(_object(token, place).get("id"), place)] = as_token(token, place)
    by_content = {token.content: token for token in stated.values()}
    named = {}
    for name in (*NAMED, *(name for name in settings if name.endswith("_token") and name not in NAMED)):
        value = settings.get(name)
        if isinstance(value, dict) and name in NAMED:
            value = as_token(value, where)
        if isinstance(value, (str, AddedToken)):
            named[name] = by_content.get(text_of(value), value) if name in NAMED else value
        elif value is not None and name in NAMED:
            raise TokenizerError(f"{where}: {name} is {value!r}; a token is text, or an object with 'content'")
    return Added(stated, named | more_named, extra)


def recorded(
    config: dict[str, Any], tokens: Mapping[int, Any], named: Mapping[str, str], extra: Sequence[str]
) -> dict[str, Any]:
    """tokenizer_config.json with these added tokens by id, in the form that transformers reads before any other."""
    decoder = {
        str(index): {"content": token.content, **{name: getattr(token, name) for name in FLAGS}}
        for index, token in sorted(tokens.items())
    }
    kept = {name: value for name, value in config.items() if name not in EXTRA_NAMES}
    return kept | dict(named) | {EXTRA_NAMES[1]: list(extra), DECODER: decoder}
