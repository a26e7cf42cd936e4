"""The classes that optimize() swaps in. None has an __init__, parameters or buffers of its own: a swapped module is the
stock module with another forward, so checkpointing, deepcopy, pickle, state_dict and hooks go on as they were.

The one thing kept on an instance is a dict of plain options (`options`); counts of what each call did are kept beside the modules
(`counts`).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert import modeling_bert as hf

from bertfast import ops
from bertfast.convert import checks, handover, installed
from bertfast.convert.counts import FAST, SPLIT, UNPADDED, count
from bertfast.convert.options import limits_of, option
from bertfast.graphs import stack
from bertfast.nn import device
from bertfast.nn.core import attention_block, mlp_block
from bertfast.nn.fp8_state import Recipe
from bertfast.nn.layout import Layout, Packed, Padded
from bertfast.nn.modules import embed
from bertfast.nn.parts import Kind, parts_of
from bertfast.nn.plain import dropout_rate, product_dtype
from bertfast.nn.through import Layers
from bertfast.nn.tokens import Sequences, sequences_of
from bertfast.triton import faster

_EMBEDDINGS = installed.Arguments(hf.BertEmbeddings.forward)
_LAYER = installed.Arguments(hf.BertLayer.forward)
_ENCODER = installed.Arguments(hf.BertEncoder.forward)
_IDS = frozenset({"input_ids", "token_type_ids", "position_ids"})
_STATES = frozenset({"hidden_states", "attention_mask"}) | checks.UNREAD


def ids(
    embeddings: Any, shape: tuple[int, int], position_ids: Any, token_type_ids: Any
) -> tuple[Tensor, Tensor | None]:
    """position_ids and token_type_ids as stock's embeddings take them, [1, S] or [B, S]: those that a call leaves out come from
    the module's buffers, which a user may have changed. token_type_ids stay None where the module has no such buffer."""
    if position_ids is None:
        position_ids = embeddings.position_ids[:, : shape[1]]
    default = getattr(embeddings, "token_type_ids", None) if token_type_ids is None else None
    if default is not None:
        # A position out of range raises here on a CPU, as in stock; on a GPU the kernel reports it without a wait.
        index = position_ids.clamp(0, default.shape[1] - 1) if position_ids.is_cuda else position_ids
        token_type_ids = torch.gather(default.expand(position_ids.shape[0], -1), 1, index)
    return position_ids, token_type_ids


class FastBertEmbeddings(hf.BertEmbeddings):
    """BertEmbeddings through the fused kernel; anything unusual goes to the stock forward, with the arguments as they came."""

    @installed.signed_as(hf.BertEmbeddings.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        call = _EMBEDDINGS.bind(args, kwargs)
        reason = self._reason(call)
        if reason is not None or call is None:
            count(self, reason or "")
            return super().forward(*args, **kwargs)
        count(self, FAST)
        input_ids = call["input_ids"]
        position_ids, token_type_ids = ids(self, input_ids.shape, call.get("position_ids"), call.get("token_type_ids"))
        offer = handover.current(self)
        if offer is not None and offer.decoder_weight is self.word_embeddings.weight:
            x, offer.tied = embed(self, input_ids, token_type_ids, position_ids, ops.tied_embedding_sum_norm)
            return x
        return embed(self, input_ids, token_type_ids, position_ids)

    def _reason(self, call: dict[str, Any] | None) -> str | None:
        reason = checks.argument_reason(call, _IDS)
        if reason is not None or call is None:
            return reason
        input_ids = call.get("input_ids")
        if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
            return f"input_ids have shape {None if input_ids is None else tuple(input_ids.shape)}"
        shape = input_ids.shape
        for name in ("position_ids", "token_type_ids"):
            values = call.get(name)
            if values is not None and values.shape not in (shape, (1, shape[1])):
                return f"{name} have shape {tuple(values.shape)}"
        return (
            checks.environment_reason()
            or checks.embeddings_reason(self)
            or checks.tensor_reason(self.word_embeddings.weight, option(self, "gpu_kernels"))
            or self.length_reason(shape[1], call.get("position_ids"))
        )

    def length_reason(self, seqlen: int, position_ids: Tensor | None) -> str | None:
        """A batch for whose length the buffers do not have the positions: stock says what it thinks of it."""
        buffer = self.position_ids
        if position_ids is None and (buffer.shape[1] < seqlen or buffer.shape[0] != 1):
            return f"position_ids has shape {tuple(buffer.shape)}, for sequences of {seqlen}"
        return None


def _states_reason(call: dict[str, Any] | None) -> str | None:
    """Arguments of a layer or an encoder that bertfast does not know, and hidden states other than [B, S, E]."""
    reason = checks.argument_reason(call, _STATES)
    if reason is not None or call is None:
        return reason
    x = call.get("hidden_states")
    if not isinstance(x, Tensor):
        return "there are no hidden states"
    return None if x.dim() == 3 and x.numel() > 0 else f"hidden states have shape {tuple(x.shape)}"


class FastBertLayer(hf.BertLayer):
    """BertLayer through the fused core, on padded tokens or, called by FastBertEncoder, on packed ones."""

    @installed.signed_as(hf.BertLayer.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) > 1 and isinstance(args[1], Packed):  # the encoder has checked every layer already
            count(self, UNPADDED)
            return self._fast(args[0], args[1])
        call = _LAYER.bind(args, kwargs)
        reason = self._reason(call)
        if reason is not None or call is None:
            count(self, reason or "")
            return super().forward(*args, **kwargs)
        count(self, FAST)
        return self._fast(call["hidden_states"], Padded(call.get("attention_mask")))

    def _reason(self, call: dict[str, Any] | None) -> str | None:
        reason = _states_reason(call)
        if reason is not None or call is None:
            return reason
        x = call["hidden_states"]
        # An attention that someone put in BERT's place may have none; layer_reason then refuses it before the mask is read.
        config = getattr(getattr(self.attention, "self", None), "config", None)
        return (
            checks.environment_reason()
            or checks.tensor_reason(x, option(self, "gpu_kernels"))
            or checks.attentions_reason(config, call)
            or checks.layer_reason(self, x.device, x.dtype)
            or checks.mask_reason(call.get("attention_mask"), x, installed.attention_implementation(config))
        )

    def _fast(self, x: Tensor, layout: Layout) -> Tensor:
        attention, mlp = parts_of(self)
        projections, intermediate = self.attention.self, self.intermediate
        # In training every step would change the copies; reentrant checkpointing runs its first forward without gradients.
        prepack, int8 = not self.training and option(self, "prepack") is not False, option(self, "int8") is True
        x = attention_block(
            x,
            layout,
            attention,
            checks.heads_of(projections),
            scale=projections.scaling,
            attention_p=attention.dropout.p if projections.training else 0.0,
            hidden_p=dropout_rate(attention.hidden_dropout),
            use_prepack=prepack,
            int8=int8,
        )
        return mlp_block(
            x,
            mlp,
            approximate=checks.approximate_of(intermediate.intermediate_act_fn) or "none",
            hidden_p=dropout_rate(mlp.dropout),
            use_prepack=prepack,
            int8=int8,
        )


def _rest(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the layers get besides hidden states and mask."""
    return {name: value for name, value in call.items() if name not in ("hidden_states", "attention_mask")}


def _splitting_saves(real: Tensor) -> bool:
    """Whether a quarter of the work goes where only sequences that begin with padding, where real [B, S] is false, stay padded."""
    begins = real[:, 0]
    work = int(real[begins].sum()) + int((~begins).sum()) * real.shape[1]
    return 4 * work <= 3 * real.numel()


class FastBertEncoder(hf.BertEncoder):
    """BertEncoder that takes the padding out once before the stack and puts it back once after it.

    Positions that the mask calls padding come back as zeros, as they do with transformers' own flash attention. Under
    BertForQuestionAnswering, whose loss is a softmax over padding too, and BertLMHeadModel, whose loss reads the position
    before each token, the stack stays padded in training and while gradients are enabled. Elsewhere padding is removed there as
    well, and logits at padding are those of a zero hidden state.
    """

    @installed.signed_as(hf.BertEncoder.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = _ENCODER.bind(args, kwargs)
        reason = self._reason(call)
        packing = None
        if reason is None and call is not None:
            x, mask = call["hidden_states"], call.get("attention_mask")
            real = checks.key_padding(mask, *x.shape[:2])
            if mask is not None and real is None:
                reason = "the mask is more than padding"
            elif real is not None and self._reads_padding(real) and _splitting_saves(real):
                return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self._split(call, real))
            else:
                reason, packing = self.packing(real)
        if reason is not None or call is None:
            count(self, f"kept padded: {reason}")
            return super().forward(*args, **kwargs)
        x = self._run(x, packing, _rest(call), UNPADDED)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x)

    def _reason(self, call: dict[str, Any] | None) -> str | None:
        """Why this call stays padded, apart from what the mask says."""
        if torch.compiler.is_compiling():
            return "a compiled graph needs shapes that do not depend on data"
        reason = _states_reason(call)
        if reason is not None or call is None:
            return reason
        x = call["hidden_states"]
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph needs shapes that do not depend on data"
        names = installed.recorded(self.config, call)
        if names or call.get("output_hidden_states"):
            return f"{' and '.join(sorted(names) or ['hidden_states'])} were asked for"
        mask = call.get("attention_mask")
        return (
            checks.attentions_reason(self.config, call)
            or checks.mask_reason(mask, x, installed.attention_implementation(self.config))
            or self.stack_reason(x, captured=self._is_captured_training(x), train=True)
            or self.loss_reason()
            or (self._speed_reason(x) if x.is_cuda else None)
        )

    def _is_captured_training(self, x: Tensor) -> bool:
        """Whether calls like this one, on a GPU, run from captured graphs forward and backward. Where dropout is on, a pass without
        gradients is one of them, though it is not captured: it must drop what the pass with gradients drops."""
        if x.device.type not in device.KINDS or limits_of(self).max_graphs < 1 or self._checkpoints():
            return False
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            return True
        return any(isinstance(module, nn.Dropout) and dropout_rate(module) > 0.0 for module in self.modules())

    def _checkpoints(self) -> bool:
        """Whether layers keep nothing of their forward, and compute it again for the backward."""
        return any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in self.layer)

    def _speed_reason(self, x: Tensor) -> str | None:
        """Why a call in training would be slower than stock on a GPU, where nobody asked for it all the same."""
        if option(self, "gpu_kernels") is not None:
            return None
        size = x.shape[2], len(self.layer), x.shape[0] * x.shape[1]
        arch = checks.architecture(x.device.index)
        return faster.slower_reason(arch, product_dtype(x), *size, seqlen=x.shape[1], train=True)

    def loss_reason(self) -> str | None:
        """Padding stays in where a loss runs over it. In training a pass without gradients is no exception: with the same random
        state it must drop what the pass with gradients drops, and elements are numbered otherwise among packed tokens."""
        if option(self, "loss_over_padding") and (
            torch.is_grad_enabled() or self.training or any(map(checks.drops, self.layer))
        ):
            return "the loss of this head runs over padding too"
        return None

    def stack_reason(self, x: Tensor, captured: bool = False, train: bool = False) -> str | None:
        """What about the stack as it stands keeps it padded, for hidden states of x's device and dtype.

        captured: whether a call on a GPU would be one captured call.
        train: of training.
        """
        if option(self, "unpad") is False:
            return "unpad=False"
        reason = checks.environment_reason() or checks.tensor_reason(x, option(self, "gpu_kernels"), captured, train)
        if reason is not None:
            return reason
        for i, layer in enumerate(self.layer):
            if type(layer) is not FastBertLayer:
                return f"layer {i} is {type(layer).__name__}"
            reason = checks.hook_reason(layer, "it") or checks.layer_reason(layer, x.device, x.dtype)
            if reason is not None:
                return f"layer {i}: {reason}"
        return None

    def packing(self, real: Tensor | None) -> tuple[str | None, ops.Packing | None]:
        """Why a batch whose real tokens are these [B, S] stays padded, or else its packing; that is None where all are real."""
        if real is None:
            return None, None
        known = ops.survey(real)
        if known.tokens == real.numel():
            return None, None
        if known.tokens == 0:
            return "no token is real", None
        if not known.begins and option(self, "first_token_read") is True:
            return "the pooler reads position 0, which is padding in some sequence", None
        return None, ops.pack(real, known)

    def _reads_padding(self, real: Tensor) -> bool:
        return option(self, "first_token_read") is True and not bool(real[:, 0].all())

    def _split(self, call: dict[str, Any], real: Tensor) -> Tensor:
        """Sequences that begin with padding, at which the pooler looks, go padded; the others are packed. One of the former, of
        padding alone for example, would keep the whole batch padded otherwise."""
        x, mask = call["hidden_states"], call["attention_mask"]
        begins = real[:, 0]
        packed, padded = begins.nonzero()[:, 0], (~begins).nonzero()[:, 0]
        _, packing = self.packing(real[packed])
        rows = {"hidden_states": x[padded], "attention_mask": mask.expand(x.shape[0], *mask.shape[1:])[padded]}
        parts = [
            self._run(x[packed], packing, _rest(call), SPLIT),
            super().forward(**{**call, **rows}).last_hidden_state,
        ]
        return torch.cat(parts)[torch.argsort(torch.cat([packed, padded]))]

    def _run(self, x: Tensor, packing: ops.Packing | None, arguments: dict[str, Any], outcome: str) -> Tensor:
        """Hidden states [B, S, E] through all layers; zeros at padding, and at what nobody reads. `outcome` is to be counted."""
        sequences = sequences_of(packing, *x.shape[:2], x.device)
        read, rows = sequences.places(self.reading(sequences)), sequences.take(x)
        layers = self.layers(arguments).ready(rows)
        if layers.at_once is not None:  # layers that are called count themselves
            for layer in self.layer:
                count(layer, UNPADDED)
        y, how = stack.run(layers, rows, sequences.layout(read), limits_of(self))
        if how is not None and self._checkpoints():
            how = "eager: gradient checkpointing calls layers one by one"
        count(self, outcome if how is None else f"{outcome}: {how}")
        return sequences.restore(y, read)

    def reading(self, sequences: Sequences) -> Tensor | Literal["first"] | None:
        """Which rows of the last layer's output a head above reads in this call, [R] int64, or the first of each sequence; None
        where it may be all of them."""
        offer = handover.current(self)
        if offer is None or offer.read is None or not self.layer:  # it is the last layer that returns the rows read
            return None
        if isinstance(offer.read, str):
            # Position 0 is real in every sequence, or the batch would not have been packed.
            return offer.read if option(self, "first_token_read") else None
        if offer.read.shape != sequences.shape:
            return None
        rows = sequences.take(offer.read[..., None])[:, 0].nonzero()[:, 0]
        return rows if rows.numel() else None

    def layers(self, arguments: dict[str, Any] | None = None) -> Layers:
        """The layers for `through`, each called with these arguments besides. `stack_reason` has found them all plain."""
        kinds: set[Kind | None] = {checks.kind_of(layer) for layer in self.layer}
        if self._checkpoints():  # which a call of each layer does
            kinds.add(None)

        def call(layer: nn.Module, x: Tensor, layout: Packed) -> Tensor:
            return layer(x, layout, **(arguments or {}))

        return Layers(
            self,
            self.layer,
            call,
            kinds.pop() if len(kinds) == 1 else None,
            prepack=option(self, "prepack") is not False,
            int8=option(self, "int8") is True,
            fp8=Recipe() if option(self, "precision") == "fp8" else None,
            infer_fp8=option(self, "precision") == "fp8",
        )
