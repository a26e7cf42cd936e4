"""What decides a corpus besides its sources and tokenizer, and the error of a build."""

from dataclasses import dataclass

SHARD_CHARACTERS = 1 << 25  # at most this much work is lost by a kill


class BuildError(ValueError):
    """A corpus that cannot be built as asked."""


@dataclass(frozen=True)
class Options:
    """What decides the corpus, besides sources and tokenizer.

    Attributes:
        splitter: "lines" (a line is a sentence) or "sentences" (a line is a paragraph).
        holdout: share of the documents that become OUT/eval, by hash of their text; the others are OUT/train. 0: OUT itself.
        refuse_bad_lines: stop at the first bad line instead of naming and passing it.
        shard_characters: of the source in one Arrow file.
    """

    splitter: str = "lines"
    holdout: float = 0.0
    refuse_bad_lines: bool = False
    shard_characters: int = SHARD_CHARACTERS

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise BuildError(f"holdout is {self.holdout}; it is a share of the documents, at least 0 and below 1")
        if self.shard_characters < 1:
            raise BuildError(f"shard_characters is {self.shard_characters}; it must be at least 1")
