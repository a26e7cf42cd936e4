"""What a checkpoint's folder says of its head: the classifier that it has, the names of its outputs, how they disagree."""

import json
from pathlib import Path

from bertfast.models import BertConfig
from bertfast.models.config import CONFIG_NAME
from bertfast.models.loading import weight_shapes
from bertfast.tasks.labels import StoredHead, listed

_WEIGHT = "classifier.weight"


def stored_head(folder: Path, head: str, names_outputs: bool = True) -> StoredHead | None:
    """The classifier that a checkpoint has, None where it has none.

    Args:
        head: the class of bertfast.models that is to be trained.
        names_outputs: whether its outputs are named, so that there must be as many as names.
    """
    config = BertConfig.from_pretrained(folder)
    rows = weight_shapes(folder).get(_WEIGHT, (0,))[0]
    if not rows:
        return None
    labels = tuple((config.id2label or {}).values())
    kinds = config.extra.get("architectures") or [head]
    other = ""
    if head not in kinds:
        other = f"it is one of a {', '.join(map(str, kinds))}"
    elif names_outputs and rows != len(labels):
        other = f"it has {rows} outputs, and config.json names {len(labels)}"
    return StoredHead(labels, config.problem_type, other)


def label_names_notes(folder: Path) -> tuple[str, ...]:
    """That a folder's config.json names its outputs in two ways that do not agree."""
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    names, numbers = config.get("id2label"), config.get("label2id")
    if not isinstance(names, dict) or not isinstance(numbers, dict):
        return ()
    if {str(place): str(name) for place, name in names.items()} == {
        str(place): str(name) for name, place in numbers.items()
    }:
        return ()
    shown = listed(f"{place} is {name}" for place, name in names.items())
    return (f"{folder}: id2label and label2id in config.json do not agree; id2label counts: {shown}",)
