"""The sum of embeddings of a family, and the ids that it takes from buffers or from the tokens where a call gives none."""

from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.convert import checks, handover
from bertfast.convert.counts import FAST, count
from bertfast.convert.options import option
from bertfast.convert.swapped import Swapped, unviewed
from bertfast.nn.embedding import embed


class FastEmbeddings(Swapped):
    """Embeddings through the fused kernel; anything unusual goes to the stock forward, with the arguments as they came."""

    def fast_forward(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        call = self.arguments.bind(args, kwargs)
        reason = self._reason(call)
        if reason is not None or call is None:
            count(self, reason or "")
            return self.stock.forward(self, *args, **kwargs)
        count(self, FAST)
        input_ids = call["input_ids"]
        position_ids, segment_ids = self.ids(input_ids, call)
        offer = handover.current(self)
        if offer is not None and offer.decoder_weight is self.word_embeddings.weight:
            x, offer.tied = embed(self, input_ids, segment_ids, position_ids, ops.tied_embedding_sum_norm)
            return unviewed(self, x)
        return unviewed(self, embed(self, input_ids, segment_ids, position_ids))

    def _reason(self: Any, call: dict[str, Any] | None) -> str | None:
        reason = checks.argument_reason(call, self.family.ids)
        if reason is not None or call is None:
            return reason
        input_ids = call.get("input_ids")
        if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
            return f"input_ids have shape {None if input_ids is None else tuple(input_ids.shape)}"
        shape = input_ids.shape
        for name in self.family.ids:
            values = call.get(name)
            if values is not None and values.shape not in (shape, (1, shape[1])):
                return f"{name} have shape {tuple(values.shape)}"
        return (
            checks.environment_reason()
            or checks.embeddings_reason(self)
            or checks.tensor_reason(self.word_embeddings.weight, option(self, "gpu_kernels"))
            or self.length_reason(shape[1], call.get("position_ids"))
        )

    def length_reason(self: Any, seqlen: int, position_ids: Tensor | None) -> str | None:
        """A batch for whose length the buffers do not have the positions: stock says what it thinks of it."""
        if position_ids is not None or self.family.positions_follow_tokens:
            return None
        buffer = self.position_ids
        if buffer.shape[1] < seqlen or buffer.shape[0] != 1:
            return f"position_ids has shape {tuple(buffer.shape)}, for sequences of {seqlen}"
        return None

    def ids(self: Any, input_ids: Tensor, call: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Positions, and rows of the segment table, of tokens [B, S], each [1, S] or [B, S]. What a call leaves out is what stock's
        embeddings take, from the module's buffers, which a user may have changed, or from the tokens. Segments are None for zeros.
        """
        position_ids = call.get("position_ids")
        if position_ids is None:
            if self.family.positions_follow_tokens:
                position_ids = positions_following(input_ids, self.padding_idx)
            else:
                position_ids = self.position_ids[:, : input_ids.shape[1]]
        if not self.family.segments:
            return position_ids, None
        segment_ids = call.get("token_type_ids")
        default = getattr(self, "token_type_ids", None) if segment_ids is None else None
        if default is not None:
            # A position out of range raises here on a CPU, as in stock; on a GPU the kernel reports it without a wait.
            index = position_ids.clamp(0, default.shape[1] - 1) if position_ids.is_cuda else position_ids
            segment_ids = torch.gather(default.expand(position_ids.shape[0], -1), 1, index)
        tasks = self._modules.get("task_type_embeddings")
        task_ids = call.get("task_type_ids")
        if tasks is not None and (segment_ids is not None or task_ids is not None):
            # Both tables are one to the kernel, a row for each pair.
            segment_ids = 0 if segment_ids is None else segment_ids * tasks.num_embeddings
            segment_ids = segment_ids if task_ids is None else segment_ids + _tasks(task_ids, tasks.num_embeddings)
        return position_ids, segment_ids


def _tasks(task_ids: Tensor, rows: int) -> Tensor:
    """The task ids, where one out of range would be a row of another pair: it raises, or becomes one out of range of the pairs."""
    wrong = (task_ids < 0) | (task_ids >= rows)
    if task_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        if bool(wrong.any()):
            place = int(wrong.flatten().nonzero()[0])
            raise IndexError(
                f"embeddings: task_type_ids holds {int(task_ids.flatten()[place])} at flattened position {place}, but the table "
                f"has {rows} rows (0 to {rows - 1}); check the ids against config.task_type_vocab_size"
            )
        return task_ids
    return torch.where(wrong, torch.iinfo(torch.int32).min, task_ids)


def positions_following(input_ids: Tensor, padding_idx: int) -> Tensor:
    """Positions [B, S] of RoBERTa's kind: tokens other than padding are counted from padding_idx + 1, padding has padding_idx
    (fairseq, `make_positions`)."""
    real = input_ids.ne(padding_idx).int()
    return (torch.cumsum(real, dim=1).to(real.dtype) * real).long() + padding_idx
