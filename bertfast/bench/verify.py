"""verify: is the fast model the stock model? A grid of shapes, paddings and dtypes against stock in float64."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bertfast.bench.cases import DTYPES
from bertfast.bench.run import Models, Parity, check_parity

SHAPES = ((1, 7), (3, 33), (8, 64), (2, 200))
PADDINGS = {"none": (0.0, False), "right": (0.5, False), "left": (0.5, True)}


@dataclass(frozen=True)
class Row:
    batch: int
    length: int
    padding: str
    dtype: str
    parity: Parity

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(models: Models) -> Iterator[Row]:
    """Rows of the grid, one after another as they are done."""
    for batch, length in SHAPES:
        for padding, (share, left) in PADDINGS.items():
            data = models.random_batch(batch, min(length, models.positions), share, left=left)
            for name, dtype in DTYPES.items():
                yield Row(batch, data.input_ids.shape[1], padding, name, check_parity(models, (data,), dtype))
