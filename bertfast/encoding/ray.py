"""The same encoder as a stateful map over a Ray Data set: a model in each worker, batches to whichever is free.

Ray starts a worker that died again and gives it the same batch, so every row comes out once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bertfast.data.files import missing_extra
from bertfast.encoding.encoder import Encoder
from bertfast.tasks.lines import DataError, described


class BatchEncoder:
    """A class for `dataset.map_batches`: adds a column of embeddings to each batch.

    Args:
        model: folder of a checkpoint that every worker sees, or its name on the hub.
        text_column: holds the texts. output_column: gets the embeddings, [N, E] float32.
        options: as `bertfast.Encoder` takes them.
    """

    def __init__(
        self, model: str, *, text_column: str = "text", output_column: str = "embedding", **options: Any
    ) -> None:
        self.text_column, self.output_column = text_column, output_column
        self.encoder = Encoder(model, **options)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with its embeddings.

        Raises:
            DataError: there is no such column, or a text is null, empty or none; Ray ends the run with it.
        """
        if self.text_column not in batch:
            raise DataError(f"there is no column {self.text_column!r}; the data set has {', '.join(batch)}")
        texts = batch[self.text_column].tolist()
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                rest = {name: values[place] for name, values in batch.items() if name != self.text_column}
                raise DataError(
                    f"row {place} of a batch, {str(rest)[:200]}: {self.text_column!r} is {described(text)}, and text is "
                    "encoded: leave such rows out first, as by dataset.filter"
                )
        return {**batch, self.output_column: self.encoder.encode(texts)}


def encode_dataset(
    dataset: Any,
    model: str,
    *,
    workers: int | tuple[int, int] = 1,
    batch_size: int = 1024,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    text_column: str = "text",
    output_column: str = "embedding",
    **options: Any,
) -> Any:
    """The data set with a column of embeddings, lazily, as all of Ray Data.

    Args:
        dataset: a `ray.data.Dataset` with a column of texts.
        model: folder of a checkpoint that every worker sees, or its name on the hub.
        workers: how many models, or (fewest, most) of them.
        batch_size: texts that a worker gets at once; it sorts them by length among themselves.
        num_cpus, num_gpus: of each worker. A worker has as many threads as CPUs; without a GPU, 1 where not given.
        options: as `bertfast.Encoder` takes them. `device` is "cuda" where `num_gpus` is given, else "cpu".

    Returns:
        A `ray.data.Dataset`.

    Raises:
        ImportError: Ray Data is not installed.
    """
    try:
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise missing_extra(error, "ray", "encoding a Ray data set") from None
    fewest, most = (workers, workers) if isinstance(workers, int) else workers
    arguments = {
        "text_column": text_column,
        "output_column": output_column,
        "device": "cuda" if num_gpus else "cpu",
        **options,
    }
    return dataset.map_batches(
        BatchEncoder,
        fn_constructor_args=(model,),
        fn_constructor_kwargs=arguments,
        compute=ActorPoolStrategy(min_size=fewest, max_size=most),
        batch_size=batch_size,
        batch_format="numpy",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
