"""What the records of a build's shards say together: the manifest, and why there would be no corpus."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import bertfast
from bertfast.data import arrow
from bertfast.data.build_options import Options
from bertfast.data.encode import SIDES
from bertfast.data.lines import BadLine
from bertfast.data.remarks import text_remarks
from bertfast.data.tokenizer import Tokenizer


def lacking(work: Path, records: list[dict[str, Any]], options: Options) -> str | None:
    """Why there would be no corpus: a side without a document."""
    documents = {side: sum(record[side]["documents"] for record in records) for side in SIDES}
    if not any(documents.values()):
        lines = (line for path in sorted(work.glob("shards/*/skipped.jsonl")) for line in path.open("rb"))
        if first := next(lines, None):
            bad, reasons = BadLine(**json.loads(first)), Counter[str]()
            for record in records:
                reasons.update(record["skipped"])
            counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
            found = f"not taken were {counts}; the first is {bad.where}: {bad.reason} ({bad.detail or 'nothing else'})"
        else:
            found = "there is no text in it"
        return f"no document is left of the source: {found}. Check the source, its format and the tokenizer"
    for side in SIDES if options.holdout else ():
        if not documents[side]:
            return f"no document for {side} with holdout {options.holdout}: choose another share, or add documents"
    return None


def manifest_of(
    records: list[dict[str, Any]], split: str | None, tokenizer: Tokenizer, plan: dict[str, Any], repeated: int
) -> dict[str, Any]:
    """The manifest.json of one side's corpus, or with None of the only one; `repeated` documents are copies of another."""
    counts, skipped, notes, both = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for record in records:
        for side in SIDES:
            both.update(record[side])
        counts.update(record[split or "train"])
        skipped.update(record["skipped"])
        notes.update(record["notes"])
    notes["repeated"] = repeated
    return {
        "format": arrow.FORMAT,
        "version": arrow.VERSION,
        **{name: counts[name] for name in ("documents", "sentences", "tokens")},
        "dtype": arrow.dtype_for(tokenizer.vocab_size),
        "tokenizer": {"sha256": tokenizer.sha256, "language": tokenizer.language, "vocab_size": tokenizer.vocab_size},
        "sources": plan["sources"],
        "skipped": dict(sorted(skipped.items())),
        "headings_left_out": notes["headings"],
        "documents_cut": notes["cut"],
        "remarks": text_remarks(both, notes, skipped, plan["options"]),
        "split": split,
        "options": plan["options"],
        "created_by": f"bertfast {bertfast.__version__}",
    }
