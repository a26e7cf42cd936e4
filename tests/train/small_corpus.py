"""A corpus's folder as `bertfast data build` makes it, small: sentences that count upwards, so that there is something to learn."""

import json
import random
from pathlib import Path

from bertfast.data.tokenizer import load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = 60


def write_corpus(folder: Path, documents: int = 24, seed: int = 0) -> Path:
    from datasets import Dataset, Features, List, Value

    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.txt").write_text("\n".join(SPECIAL + [f"w{i}" for i in range(WORDS)]) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    draw = random.Random(seed)
    rows: dict[str, list] = {"input_ids": [], "sentence_lengths": []}
    for _ in range(documents):
        at, lengths, ids = draw.randrange(WORDS), [], []
        for _ in range(draw.randrange(4, 9)):
            lengths.append(draw.randrange(3, 12))
            ids += [len(SPECIAL) + (at + i) % WORDS for i in range(lengths[-1])]
            at += lengths[-1]
        rows["input_ids"].append(ids)
        rows["sentence_lengths"].append(lengths)
    features = Features({"input_ids": List(Value("uint16")), "sentence_lengths": List(Value("int32"))})
    Dataset.from_dict(rows, features).save_to_disk(str(folder))
    loaded = load_tokenizer(tokenizer)
    manifest = {
        "format": "bertfast-corpus",
        "version": 1,
        "dtype": "uint16",
        "documents": documents,
        "sentences": sum(map(len, rows["sentence_lengths"])),
        "tokens": sum(map(len, rows["input_ids"])),
        "tokenizer": {"vocab_size": loaded.vocab_size, "sha256": loaded.sha256, "language": "en"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
