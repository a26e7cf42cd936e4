"""A small module whose rows depend on their whole sequence, calls of it, and a stand-in that counts and fails on demand."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bertfast import graphs
from bertfast.graphs import backend as backends
from bertfast.nn.tokens import Tokens

WORDS, POSITIONS, WIDTH = 50, 64, 8


class Toy(nn.Module):
    """Row i is W (x_i + the sum of its sequence), x the three embeddings' sum."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.word = nn.Embedding(WORDS, WIDTH, dtype=dtype)
        self.position = nn.Embedding(POSITIONS, WIDTH, dtype=dtype)
        self.segment = nn.Embedding(2, WIDTH, dtype=dtype)
        self.dense = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.requires_grad_(False)
        self.calls = 0

    def rows(self, tokens: Tokens, read: Tensor | None) -> Tensor:
        self.calls += 1
        types = torch.zeros_like(tokens.input_ids) if tokens.token_type_ids is None else tokens.token_type_ids
        x = self.word(tokens.input_ids) + self.position(tokens.position_ids) + self.segment(types)
        sequence = torch.searchsorted(tokens.bounds[1:], torch.arange(x.shape[0], dtype=torch.int32), right=True)
        sums = torch.zeros(tokens.bounds.shape[0] - 1, WIDTH, dtype=x.dtype).index_add_(0, sequence, x)
        assert int(tokens.bounds[0]) == 0
        assert int(tokens.bounds[-1]) == x.shape[0]
        assert int((tokens.bounds[1:] - tokens.bounds[:-1]).max()) <= tokens.max_seqlen
        rows = x + sums[sequence]
        return self.dense(rows if read is None else rows[read])


class Counting(backends.StandIn):
    """Counts captures and replays. `broken`, where set, is called with the function before each capture."""

    def __init__(self):
        super().__init__()
        self.captures = self.replays = 0
        self.broken = None
        self.shift = 0.0  # added to what a graph computes

    def capture(self, function, pool=backends.INFERENCE):
        if self.broken is not None:
            self.broken(function)
        self.captures += 1
        graph = super().capture(lambda: tuple(t + self.shift for t in function()))
        replay = graph.replay

        def counted(function):
            self.replays += 1
            replay(lambda: tuple(t + self.shift for t in function()))

        graph.replay = counted
        return graph


@contextmanager
def standing_in(backend=None):
    backend = Counting() if backend is None else backend
    with backends.installed(backend):
        yield backend


def tokens_of(*lengths: int, segments: bool = False, seed: int = 0, ids: list[int] | None = None) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])
    words = torch.randint(1, WORDS, (total,), generator=generator) if ids is None else torch.tensor(ids)
    types = torch.randint(0, 2, (total,), generator=generator) if segments else None
    return packed(words, positions, types, bounds, bounds, max(lengths))


def packed(ids, positions, types, bounds, cu_seqlens, longest, exact=True) -> Tokens:
    return Tokens(
        rows=ids.shape[0],
        cu_seqlens=cu_seqlens,
        bounds=bounds,
        max_seqlen=longest,
        shape=tuple(ids.shape),
        exact=exact,
        input_ids=ids,
        position_ids=positions,
        token_type_ids=types,
    )


def run(toy: Toy, tokens: Tokens, read=None, **options) -> graphs.Outcome:
    options = {"weights": lambda: list(toy.parameters()), "key": None, "finish": torch.clone} | options
    with torch.no_grad():
        return graphs.run(toy, toy.rows, tokens, read, **options)


def assert_right(toy: Toy, tokens: Tokens, read, result: Tensor) -> None:
    """As the function on the call's own tensors; sums of a few terms in float64."""
    with torch.no_grad():
        torch.testing.assert_close(
            result, toy.rows(tokens, tokens.first if isinstance(read, str) else read), rtol=1e-12, atol=1e-12
        )


FIRST = "eager: first call of its bucket"
