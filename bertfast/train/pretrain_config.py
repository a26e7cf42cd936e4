"""Options of `bertfast pretrain`: a corpus, a model, how batches are made of the one and the other is trained on them."""

from dataclasses import dataclass, field

from bertfast.options import option
from bertfast.train.config import TrainConfig


@dataclass
class ModelOptions:
    """The sizes of the model; where not given, BERT-base's, or with `init` the checkpoint's, which cannot be changed.

    A run's config.yaml records them as they are in its model.
    """

    init: str | None = option(None, "folder of a checkpoint to begin from; the sizes are then its own")
    hidden: int | None = option(None, "width of the residual stream; none: 768", low=1)
    layers: int | None = option(None, "encoder layers; none: 12", low=1)
    heads: int | None = option(None, "attention heads of a layer, which share its width; none: 12", low=1)
    feed_forward: int | None = option(None, "width inside the feed-forward layers; none: 4 x hidden", low=1)
    positions: int | None = option(None, "longest sequence the model will ever take; none: 512", low=5)
    dropout: float | None = option(
        None, "of hidden states and attention; none: 0.1, or the checkpoint's own rates", low=0, high=0.99
    )


@dataclass
class DataOptions:
    """How documents become masked batches."""

    token_budget: int = option(8192, "tokens of a micro-batch", low=5)
    max_seq_length: int = option(128, "tokens of a sample, special ones included", low=5)
    short_seq_prob: float = option(0.1, "share of samples that are made shorter on purpose", low=0, high=1)
    nsp: bool = option(True, "pairs of segments and next-sentence prediction")
    mask_prob: float = option(0.15, "share of tokens that are predicted", low=0, high=1)
    whole_word: bool = option(False, "mask all pieces of a word together", flags=("--whole-word/--pieces",))
    max_predictions: int | None = option(None, "masked tokens of a sample at most", low=1)
    layout: str = option("packed", choices=("packed", "padded"))
    workers: int = option(1, "processes that make batches; 0: the trainer itself", low=0, free=True)


@dataclass
class PretrainConfig:
    """All of a run; `out` and `eval` may change when it is resumed."""

    corpus: str = option(help="folder that `bertfast data build` wrote", argument=True)
    out: str = option(help="folder of the run; model/ in it is the result", free=True)
    eval: str | None = option(None, "corpus that is held out", free=True)
    eval_batches: int | None = option(None, "batches of it at most; none: all", low=1, free=True)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=1))
