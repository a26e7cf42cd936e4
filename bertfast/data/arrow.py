"""The corpus format: Arrow files that `datasets.load_from_disk` opens, and what stands around them.

A row is a document: `input_ids`, the pieces of all its sentences, and `sentence_lengths`.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertfast.data.files import missing_extra, write_whole

FORMAT, VERSION = "bertfast-corpus", 1
DATA_NAME = "data-{:05d}-of-{:05d}.arrow"
BATCH_DOCUMENTS = 1 << 16  # rows of one record batch: list offsets are 32 bits


@dataclass
class Rows:
    """Documents as flat arrays: `ids` of all, `lengths` of all sentences, and how many tokens and sentences each document has."""

    ids: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    sentences: np.ndarray

    @classmethod
    def joined(cls, parts: list["Rows"], dtype: str) -> "Rows":
        def together(name: str, kind: str) -> np.ndarray:
            return np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)]).astype(kind)

        return cls(
            together("ids", dtype),
            together("lengths", "int32"),
            together("tokens", "int64"),
            together("sentences", "int64"),
        )

    def counts(self) -> dict[str, int]:
        return {"documents": len(self.tokens), "sentences": len(self.lengths), "tokens": len(self.ids)}


def dtype_for(vocab_size: int) -> str:
    """uint16 where every id fits: half the bytes."""
    return "uint16" if vocab_size <= 1 << 16 else "int32"


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing_extra(error, "data", "writing a corpus") from None
    return datasets


def features(dtype: str) -> Any:
    datasets = _datasets()
    return datasets.Features(
        {"input_ids": datasets.List(datasets.Value(dtype)), "sentence_lengths": datasets.List(datasets.Value("int32"))}
    )


def write_rows(path: Path, rows: Rows, dtype: str) -> None:
    """One Arrow file, forced to the disk. OSError when that is full."""
    _datasets()
    import pyarrow
    from datasets.arrow_writer import ArrowWriter

    def column(values: np.ndarray, sizes: np.ndarray) -> Any:
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).astype(np.int32)
        return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))

    columns = {"input_ids": column(rows.ids, rows.tokens), "sentence_lengths": column(rows.lengths, rows.sentences)}
    with path.open("wb") as file:
        with ArrowWriter(features=features(dtype), stream=file, writer_batch_size=BATCH_DOCUMENTS) as writer:
            writer.write_table(pyarrow.table(columns))
            writer.finalize(close_stream=False)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_dataset_files(folder: Path, files: int, dtype: str, fingerprint: str) -> None:
    """state.json and dataset_info.json, which make `files` Arrow files one data set to `datasets.load_from_disk`."""
    datasets = _datasets()
    state: dict[str, Any] = {
        "_data_files": [{"filename": DATA_NAME.format(index, files)} for index in range(files)],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    datasets.DatasetInfo(features=features(dtype)).write_to_directory(folder)
    write_json(folder / "state.json", state)
