"""Dropout bits of the Triton kernels are those of `bertfast.ops.rng`, for any tile, and the interpreter multiplies bfloat16."""

import pytest
import torch

from bertfast.ops import rng

pytest.importorskip("triton")
import triton
import triton.language as tl

from bertfast.triton import random
from bertfast.triton.launch import launch


@triton.jit
def rows_kernel(rng_ptr, out_ptr, first_row, threshold, ROWS: tl.constexpr, COLS: tl.constexpr):
    seed, offset = random.load_state(rng_ptr)
    row = first_row + tl.arange(0, ROWS)[:, None].to(tl.int64)
    keep = random.rows_keep(seed, offset, row, tl.arange(0, COLS // 8)[None, :], threshold, ROWS, COLS)
    place = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    tl.store(out_ptr + place, keep.to(tl.int8))


@triton.jit
def attention_kernel(rng_ptr, out_ptr, first_query, first_key, threshold, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    seed, offset = random.load_state(rng_ptr)
    head = tl.program_id(0)
    query = first_query + tl.arange(0, QUERIES)[:, None]
    group = first_key // 16 + tl.arange(0, KEYS // 16)[None, :]
    words = random.attention_words(seed, offset, head, query, group, QUERIES, KEYS)
    keep = random.attention_keep(words, threshold, QUERIES, KEYS)
    place = (head * QUERIES + tl.arange(0, QUERIES)[:, None]) * KEYS + tl.arange(0, KEYS)[None, :]
    tl.store(out_ptr + place, keep.to(tl.int8))


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + place, tl.dot(tl.load(a_ptr + place), tl.load(b_ptr + place), input_precision="ieee"))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("seed", [(0, 0), (7, 3), (2**31 + 5, 2**31 - 1), (2**40 + 9, 11)])
def test_rows(triton_ops, seed):
    state = torch.tensor(seed)
    out = torch.empty(4, 64, dtype=torch.int8, device=DEVICE)
    launch(rows_kernel, (1,), (state.to(DEVICE), out, 2, rng.threshold_rows(0.3)), {"ROWS": 4, "COLS": 64})
    assert torch.equal(out.cpu().bool(), rng.keep_rows(state, 6, 64, 0.3)[2:])


@pytest.mark.parametrize("seed", [(0, 0), (2**40 + 9, 2**31 - 1)])
def test_attention(triton_ops, seed):
    state = torch.tensor(seed)
    out = torch.empty(6, 16, 32, dtype=torch.int8, device=DEVICE)
    args = (state.to(DEVICE), out, 16, 32, rng.threshold_attention(0.2))
    launch(attention_kernel, (6,), args, {"QUERIES": 16, "KEYS": 32})
    wanted = rng.keep_attention(state, 2, 3, 32, 64, 0.2)[:, :, 16:, 32:]
    assert torch.equal(out.cpu().bool(), wanted.flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dot(triton_ops, dtype):
    a, b = torch.randn(2, 32, 32).to(dtype)
    out = torch.empty(32, 32, device=DEVICE)
    launch(dot_kernel, (1,), (a.to(DEVICE), b.to(DEVICE), out), {"SIZE": 32})
    torch.testing.assert_close(out.cpu(), a.float() @ b.float(), rtol=2e-3, atol=2e-3)
