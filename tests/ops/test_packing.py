"""packing: any pattern of real tokens, both ways, with gradients; bad indices never read."""

import pytest
import torch

from bertfast.ops import pack, repad, survey, unpad
from bertfast.ops.packing.op import _pack_surveyed

MASKS = {
    "right": torch.arange(6) < torch.tensor([6, 2, 1])[:, None],
    "left": torch.arange(6) >= torch.tensor([0, 4, 5])[:, None],
    "holes": torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 0]], dtype=torch.bool),
    "empty rows": torch.arange(6) < torch.tensor([0, 3, 0])[:, None],
    "nothing": torch.zeros(2, 6, dtype=torch.bool),
}


@pytest.mark.parametrize("kind", list(MASKS))
def test_parity_both_ways(implementation, kind):
    mask = MASKS[kind]
    indices, bounds = implementation.pack_mask(mask)
    x = torch.randn(*mask.shape, 5)
    assert torch.equal(implementation.unpad(x.flatten(0, 1), indices), x[mask])
    assert bounds.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    back = implementation.repad(x[mask], indices, mask.numel()).view_as(x)
    assert torch.equal(back, x * mask[..., None])


@pytest.mark.parametrize("kind", [*MASKS, "all real", "no row", "no column"])
def test_a_mask_is_looked_through_once(kind):
    """What a GPU gets, whose host waits once: numbers first, then indices whose shapes are known."""
    more = {"all real": torch.ones(2, 5), "no row": torch.zeros(0, 5), "no column": torch.zeros(3, 0)}
    mask = (MASKS | more)[kind].bool()
    known = survey(mask)
    lengths = mask.sum(1).tolist()
    first = all(mask[:, 0].tolist()) if mask.numel() else True
    assert known == (sum(lengths), max(lengths, default=0), first)
    indices, bounds = _pack_surveyed(mask, known.tokens)
    expected = pack(mask)
    assert torch.equal(indices, expected.indices)
    assert torch.equal(bounds, expected.cu_seqlens)
    assert (indices.dtype, bounds.dtype) == (torch.int64, torch.int32)
    assert expected.max_seqlen == known.longest


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
@pytest.mark.parametrize("cols", [1, 3, 8, 257, 768])
def test_rows_of_any_size(implementation, dtype, cols):
    # Odd numbers of bytes, one column, exact tiles of columns and a rest: bits must not change, NaN's included.
    x = torch.randint(0, 256, (7, cols * dtype.itemsize), dtype=torch.uint8)
    x = x.bool() if dtype == torch.bool else x.view(dtype)
    indices = torch.tensor([6, 0, 2])
    bits = torch.uint8
    assert torch.equal(implementation.unpad(x, indices).view(bits), x[indices].view(bits))
    back = x.new_zeros(9, cols)
    back[indices] = x[:3]
    assert torch.equal(implementation.repad(x[:3], indices, 9).view(bits), back.view(bits))


def test_rows_that_begin_anywhere(implementation):
    # A slice of a flat tensor is contiguous but not aligned, and a transposed one is neither.
    flat = torch.randn(41).bfloat16()
    indices = torch.tensor([3, 1])
    lone = torch.randn(1, 4, dtype=torch.float64).T  # contiguous, with a stride of 4 along its only column
    for x in (flat[1:].view(4, 10), flat[:40].view(10, 4).T, flat[3:13].view(1, 10).expand(4, 10), lone):
        assert torch.equal(implementation.unpad(x, indices), x[indices])
        assert torch.equal(implementation.repad(x, torch.arange(4), 4), x)


def test_many_sequences(implementation):
    # More bounds than one program searches.
    mask = torch.rand(300, 3) < 0.4
    indices, bounds = implementation.pack_mask(mask)
    assert torch.equal(indices, mask.flatten().nonzero().flatten())
    assert bounds.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert bounds.dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_public_functions(dtype):
    mask = MASKS["right"]
    packing = pack(mask.long())
    assert (packing.max_seqlen, packing.batch, packing.seqlen) == (6, 3, 6)
    for shape in ((3, 6), (3, 6, 2), (3, 6, 2, 4)):
        x = torch.randint(0, 99, shape).to(dtype)
        assert torch.equal(unpad(x, packing), x[mask])
        assert torch.equal(repad(unpad(x, packing), packing), x * mask.view(3, 6, *[1] * (len(shape) - 2)).to(dtype))


def test_gradients():
    packing = pack(MASKS["holes"])
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: unpad(t, packing), [x])
    y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: repad(t, packing), [y])


def test_opcheck():
    ops = torch.ops.bertfast
    indices, _ = ops.pack_mask(MASKS["holes"])
    torch.library.opcheck(ops.unpad.default, (torch.randn(12, 3, requires_grad=True), indices))
    torch.library.opcheck(ops.repad.default, (torch.randn(6, 3, requires_grad=True), indices, 12))
    # The number of tokens depends on data, which ahead-of-time tracing with static shapes cannot express.
    torch.library.opcheck(ops.pack_mask.default, (MASKS["holes"],), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("bad", [-1, 12, 2**40])
def test_bad_index_is_named(implementation, bad):
    text = f"index {bad} at position 1 is outside the 12 rows"
    if type(implementation).__name__ == "TritonOps" and torch.cuda.is_available():
        text = "the index at position 1 is outside the rows"  # a kernel reports the place alone
    with pytest.raises(IndexError, match=text):
        implementation.unpad(torch.randn(12, 3), torch.tensor([0, bad]))
    with pytest.raises(IndexError, match=text):
        implementation.repad(torch.randn(2, 3), torch.tensor([0, bad]), 12)


def test_bad_shapes():
    packing = pack(MASKS["right"])
    with pytest.raises(ValueError, match=r"mask must be \[B, S\]"):
        pack(torch.ones(3))
    with pytest.raises(ValueError, match="the packing is of a 3 x 6 batch"):
        unpad(torch.randn(3, 5, 2), packing)
    with pytest.raises(ValueError, match="the packing has 9 tokens"):
        repad(torch.randn(8, 2), packing)


@pytest.mark.parametrize("bad", [-1, 12, 2**40])
def test_kernels_given_a_bad_index_read_nothing_and_report_it(triton_ops, monkeypatch, bad):
    # What happens on a GPU, where nobody looks at the indices first. x is surrounded by 7s that must not show.
    if torch.cuda.is_available():
        pytest.skip("needs the interpreter")
    from bertfast.ops.packing import triton as kernels
    from bertfast.triton import mailbox

    monkeypatch.setattr(kernels, "_check", lambda *args: None)
    surrounded = torch.full((14, 3), 7.0)
    x = surrounded[1:13].copy_(torch.randn(12, 3))
    got = kernels.unpad(x, torch.tensor([5, bad, 0]))
    assert torch.equal(got[[0, 2]], x[[5, 0]])
    assert got[1].isnan().all()
    with pytest.raises(IndexError, match="the index at position 1 is outside the rows"):
        mailbox.check(x.device)
    back = kernels.repad(x[:3], torch.tensor([5, bad, 3]), 12)
    assert torch.equal(back[[5, 3]], x[[0, 2]])
    place = 0 if bad < 0 else 11
    assert back[place].isnan().all()
    assert back.isnan().sum() == 3
    with pytest.raises(IndexError, match="the index at position 1 is outside the rows"):
        mailbox.check(x.device)
    mailbox.check(x.device)  # once


def test_of_repeated_indices_the_last_wins(triton_ops):
    x = torch.arange(5.0)[:, None]
    assert triton_ops.repad(x, torch.tensor([2, 0, 2, 3, 2]), 4).flatten().tolist() == [1.0, 0.0, 4.0, 3.0]


def test_no_rows(implementation):
    nothing = torch.tensor([], dtype=torch.int64)
    assert implementation.unpad(torch.randn(4, 3), nothing).shape == (0, 3)
    assert torch.equal(implementation.repad(torch.randn(0, 3), nothing, 4), torch.zeros(4, 3))
    assert implementation.repad(torch.randn(0, 3), nothing, 0).shape == (0, 3)


def test_masks_to_be_added_are_refused():
    with pytest.raises(ValueError, match="numbers below 0"):
        pack(torch.tensor([[0.0, -1e4], [0.0, 0.0]]))
    assert pack(torch.tensor([[1.0, 0.0], [0.5, 1.0]])).indices.tolist() == [0, 2, 3]
