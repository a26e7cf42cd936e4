"""linear_cross_entropy on CUDA: the products are cuBLAS's, everything between them is two Triton kernels over the logits.

    forward   one program a row reads x W^T once: running maximum and sum of each lane, then over lanes; loss, lse, argmax
    backward  one program owns some columns and walks over rows: dlogits from lse alone, dbias added up on the way

Saved are lse and, where asked for, x W^T itself; else backward multiplies again. Rows are padded to 64 columns, so that 30522
of them still begin at multiples of 16 bytes. Products read and write such rows without a copy: ATen hands cuBLAS any matrix,
outputs too, with one stride of 1 and the other at least a row long, and takes that stride as its leading dimension
(prepare_matrix_for_cublas in ATen/native/cuda; `mm` makes no proxy of `out`): read in its source. In 16 bits the products go
over the padded columns too, with a copy of the weight that has zeros there (`words`): logits of the padding are 0 and not read,
its gradients are written as 0. At most LOGITS_BYTES of logits are worked on at a time, as a rule all of them.
"""

from pathlib import Path

import torch
from torch import Tensor

from bertfast.ops.masked_lm_loss import reference
from bertfast.ops.masked_lm_loss.triton_kernels import cross_entropy_bwd_kernel, cross_entropy_fwd_kernel
from bertfast.ops.masked_lm_loss.words import aligned_words, unaligned
from bertfast.triton import launch, mailbox, sums, tables

LOGITS_BYTES = 1 << 30
TAKEN = (torch.float32, torch.float16, torch.bfloat16)
BAD_LABEL = mailbox.meaning(
    6,
    IndexError,
    "masked_lm_loss: slot {place} of the masked tokens, in an earlier call, has a label outside the "
    "vocabulary or a position past the last token",
)
TABLES = tables.load("masked_lm_loss", Path(__file__).with_name("launch.json"))


def _pieces(rows: int, columns: int, element_size: int) -> list[slice]:
    """Even pieces of the rows, multiples of 128 where there are several: whole tiles of the product."""
    count = -(-rows * columns * element_size // LOGITS_BYTES)
    if count <= 1:
        return [slice(0, rows)]
    step = -(-rows // count)
    step = -(-step // 128) * 128 if step >= 128 else step
    return [slice(at, min(at + step, rows)) for at in range(0, rows, step)]


def _taken(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return x.dtype in TAKEN and x.dtype == weight.dtype == bias.dtype


def linear_cross_entropy_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not _taken(x, weight, bias):
        return reference.forward(x, weight, bias, labels, keep)
    mailbox.check(x.device)
    rows, vocabulary = x.shape[0], weight.shape[0]
    if launch.INTERPRETED:
        reference.check_labels(labels, vocabulary)
    columns = reference.padded(vocabulary)
    pieces = [slice(0, rows)] if keep else _pieces(rows, columns, x.element_size())
    logits = x.new_empty((rows if keep else pieces[0].stop, columns))
    loss = x.new_empty(rows, dtype=torch.float32)
    lse, argmax = torch.empty_like(loss), labels.new_empty(rows)
    bias, labels, box = bias.contiguous(), labels.contiguous(), mailbox.box(x.device)
    words = aligned_words(weight, rows)
    tile = TABLES.find("forward", launch.architecture(x.device))
    lane, step = 16 // x.element_size(), tile["bytes"] // x.element_size()
    for piece in pieces:
        part = x[piece]
        torch.mm(part, words.t(), out=logits[: part.shape[0], : words.shape[0]])
        launch.launch(
            cross_entropy_fwd_kernel,
            (part.shape[0],),
            (logits, bias, labels, loss, lse, argmax, box, piece.start),
            {"VOCABULARY": vocabulary, "STRIDE": columns, "COLS": step, "LANE": lane, "SLOT": BAD_LABEL},
            warps=tile["warps"],
        )
    if keep and words is weight:
        logits[:, vocabulary:].zero_()
    return loss, lse, argmax, logits if keep else x.new_empty(0)


def linear_cross_entropy_bwd(
    dloss: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    lse: Tensor,
    kept: Tensor,
    needs_dx: bool,
    needs_dweight: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not _taken(x, weight, bias):
        return reference.backward(dloss, x, weight, bias, labels, lse, kept, needs_dx, needs_dweight, needs_dbias)
    rows, vocabulary = x.shape[0], weight.shape[0]
    if rows == 0:
        wanted = (
            x.shape if needs_dx else (0,),
            weight.shape if needs_dweight else (0,),
            bias.shape if needs_dbias else (0,),
        )
        return x.new_zeros(wanted[0]), weight.new_zeros(wanted[1]), bias.new_zeros(wanted[2])
    columns, has_kept = reference.padded(vocabulary), kept.dim() == 2
    pieces = _pieces(rows, columns, x.element_size())
    dlogits = x.new_empty((pieces[0].stop, columns))
    dx = x.new_empty(x.shape if needs_dx else (0,))
    tile = TABLES.find("backward", launch.architecture(x.device))
    programs, cols = min(tile["row_programs"], rows), tile["cols"]
    dbias = x.new_empty((len(pieces), programs, columns), dtype=torch.float32) if needs_dbias else None
    dloss, bias, labels = dloss.contiguous(), bias.contiguous(), labels.contiguous()
    words = aligned_words(weight, rows) if needs_dx or not has_kept else weight
    # The gradient of the weight reads no copy: there the padding is only some more rows of a product.
    rows_of_dweight = columns if unaligned(weight) else vocabulary
    dweight = None
    for number, piece in enumerate(pieces):
        part = x[piece]
        count = part.shape[0]
        here = dlogits[:count, : words.shape[0]]
        if not has_kept:
            torch.mm(part, words.t(), out=here)
        launch.launch(
            cross_entropy_bwd_kernel,
            (launch.cdiv(columns, cols), programs),
            (
                kept[piece] if has_kept else dlogits,
                dlogits,
                bias,
                labels,
                lse,
                dloss,
                None if dbias is None else dbias[number],
                piece.start,
                count,
            ),
            {"VOCABULARY": vocabulary, "STRIDE": columns, "COLS": cols},
            warps=tile["warps"],
        )
        if needs_dx:
            torch.mm(here, words, out=dx[piece])
        if not needs_dweight:
            continue
        product = torch.mm(dlogits[:count, :rows_of_dweight].t(), part)[:vocabulary]
        # A piece's product is rounded to x's dtype before it is added in float32: one rounding a piece of 17,000 tokens.
        dweight = product if dweight is None else dweight.float().add_(product)
    added = bias.new_empty(0 if dbias is None else vocabulary)
    if dbias is not None:
        sums.add_up(dbias.view(-1, columns), added)
    return dx, weight.new_empty(0) if dweight is None else dweight.to(weight.dtype), added
