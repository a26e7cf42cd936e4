"""Cases of embedding_sum_norm with BERT's vocabulary; words are drawn as unevenly as text, a third of them one padding word."""

import torch
import torch.nn.functional as F

from benchmarks.gpu.case import Arguments, Case, randn, state, stock_peers

EPS, WORDS, POSITIONS, PAD = 1e-12, 30522, 512, 0


def _inputs(device: torch.device, tokens: int, cols: int, dtype: torch.dtype, segments: int) -> list[torch.Tensor]:
    """input_ids, position_ids, segment_ids, word, position, segment, weight, bias."""
    # Density falls with the id, about as word frequencies do: the common words make long runs.
    words = (torch.rand(tokens, device=device) ** 4 * (WORDS - 1)).long() + 1
    words = torch.where(torch.rand(tokens, device=device) < 0.33, PAD, words)
    return [
        words,
        torch.arange(tokens, device=device) % POSITIONS,
        torch.randint(0, segments, (tokens,), device=device),
        *[randn(device, dtype, rows, cols) for rows in (WORDS, POSITIONS, segments)],
        *[randn(device, dtype, cols) for _ in range(2)],
    ]


def _stock(ids, word, position, segment, weight, bias, p):
    z = F.embedding(ids[0], word, padding_idx=PAD) + F.embedding(ids[2], segment) + F.embedding(ids[1], position)
    return F.dropout(F.layer_norm(z, weight.shape, weight, bias, EPS), p, training=p > 0)


def _forward_peer(stock, arguments: Arguments):
    *tensors, _, _, p, _ = arguments
    return lambda: stock(tensors[:3], *tensors[3:], p)


def _backward_peer(stock, arguments: Arguments):
    dy, *tensors, _, _, _, p, _ = arguments
    leaves = [t.detach().requires_grad_() for t in (*tensors[3:], torch.zeros_like(tensors[-1]))]
    y = stock(tensors[:3], *leaves, p)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def _tied_peer(stock, arguments: Arguments):
    dword, *rest = arguments
    backward = _backward_peer(stock, tuple(rest))
    return lambda: dword + backward()[0]


def _cases(tokens: int, cols: int, dtype: torch.dtype, p: float, segments: int = 2, tied: bool = False) -> list[Case]:
    def forward(device: torch.device) -> Arguments:
        return (*_inputs(device, tokens, cols, dtype, segments), PAD, EPS, p, state(device) if p else None)

    def backward(device: torch.device) -> Arguments:
        tensors = _inputs(device, tokens, cols, dtype, segments)[:-1]
        mean = randn(device, torch.float32, tokens)
        rstd = randn(device, torch.float32, tokens).abs() + 0.5
        dropout = state(device) if p else None
        return randn(device, dtype, tokens, cols), *tensors, mean, rstd, PAD, p, dropout

    def with_dword(device: torch.device) -> Arguments:
        return randn(device, dtype, WORDS, cols), *backward(device)

    shape = f"{tokens}x{cols} p{p}" + ("" if segments == 2 else f" {segments} segments")
    rows = tokens * cols * dtype.itemsize
    tables = (WORDS + POSITIONS + segments) * cols * dtype.itemsize
    # A table's rows are read once however many tokens name them; the gradients' tables are written whole.
    read = min(rows, tables) + 24 * tokens
    words = WORDS * cols * dtype.itemsize
    cases = [
        # Rows move in 16 bytes a thread; the other accesses are ids, one number each.
        Case(
            "embedding_sum_norm_fwd",
            shape,
            dtype,
            forward,
            rows + read + 8 * tokens,
            peers=stock_peers(_stock, _forward_peer),
            wide=0.45,
        ),
        Case(
            "embedding_sum_norm_bwd",
            shape,
            dtype,
            backward,
            rows + read + tables + 8 * tokens,
            peers=stock_peers(_stock, _backward_peer),
        ),
    ]
    if tied:
        # Of the word table's gradient only rows of words that occur are read and written, at most one a token.
        moved = rows + read + tables - words + 2 * min(rows, words) + 8 * tokens
        op = "embedding_sum_norm_tied_bwd"
        cases.append(Case(op, shape, dtype, with_dword, moved, peers=stock_peers(_stock, _tied_peer)))
    return cases


_B, _H, _F = torch.bfloat16, torch.float16, torch.float32
CASES: list[Case] = [
    *_cases(65536, 768, _B, 0.1, tied=True),
    *_cases(65536, 1024, _B, 0.1),
    *_cases(8192, 768, _B, 0.1, tied=True),
    *_cases(8192, 768, _B, 0.0),
    *_cases(8192, 768, _H, 0.1),
    *_cases(8192, 768, _F, 0.1, tied=True),
    *_cases(8192, 768, _B, 0.1, segments=3),
    *_cases(8192, 768, _B, 0.1, segments=1),
    *_cases(1024, 768, _B, 0.1),  # the most that need no chunks
    *_cases(128, 768, _B, 0.0, tied=True),
    *_cases(8192, 128, _B, 0.1),
    *_cases(1024, 384, _B, 0.1),
    *_cases(1024, 2048, _B, 0.1),
    *_cases(1024, 4096, _B, 0.1),
]
