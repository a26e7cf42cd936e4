"""A layer of a family, through the fused core."""

from typing import Any

from torch import Tensor

from bertfast import _torch
from bertfast.convert import adapters, checks, chunking, installed
from bertfast.convert.counts import FAST, UNPADDED, count
from bertfast.convert.options import option
from bertfast.convert.swapped import Swapped, unviewed
from bertfast.nn.core import attention_block, mlp_block
from bertfast.nn.layout import Layout, Packed, Padded
from bertfast.nn.parts import parts_of
from bertfast.nn.plain import dropout_rate

_STATES = frozenset({"hidden_states", "attention_mask"}) | checks.UNREAD


def states_reason(call: dict[str, Any] | None) -> str | None:
    """Arguments of a layer or an encoder that bertfast does not know, and hidden states other than [B, S, E]."""
    reason = checks.argument_reason(call, _STATES)
    if reason is not None or call is None:
        return reason
    x = call.get("hidden_states")
    if not isinstance(x, Tensor):
        return "there are no hidden states"
    return None if x.dim() == 3 and x.numel() > 0 else f"hidden states have shape {tuple(x.shape)}"


class FastLayer(Swapped):
    """A layer through the fused core, on padded tokens or, called by a FastEncoder, on packed ones."""

    unwrapped = staticmethod(adapters.unwrapped)

    def fast_forward(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if len(args) > 1 and isinstance(args[1], Packed):  # the encoder has checked every layer already
            count(self, UNPADDED)
            return self._fast(args[0], args[1])
        call = self.arguments.bind(args, kwargs)
        reason = self._reason(call)
        if reason is not None or call is None:
            count(self, reason or "")
            return self.stock.forward(self, *args, **kwargs)
        count(self, FAST)
        return unviewed(self, self._fast(call["hidden_states"], Padded(call.get("attention_mask"))))

    def _reason(self: Any, call: dict[str, Any] | None) -> str | None:
        if call is not None and call.get("position_bias") is not None:
            return "stock's layer ran, which adds the bias of relative positions"
        reason = states_reason(call)
        if reason is not None or call is None:
            return reason
        x = call["hidden_states"]
        # An attention that someone put in the place of stock's may have none; layer_reason then refuses it before the mask is read.
        config = getattr(checks.attention_of(self), "config", None)
        return (
            checks.environment_reason()
            or checks.tensor_reason(x, option(self, "gpu_kernels"))
            or checks.attentions_reason(config, call)
            or checks.layer_reason(self, x.device, x.dtype, seqlen=x.shape[1])
            or checks.few_tokens_reason(self, x)
            or checks.mask_reason(call.get("attention_mask"), x, installed.attention_implementation(config))
        )

    def _fast(self: Any, x: Tensor, layout: Layout) -> Tensor:
        kind = checks.kind_of(self)
        parts, beside = adapters.apart(parts_of(self))
        # In training every step would change the copies; reentrant checkpointing runs its first forward without gradients.
        # Gathered weights lie elsewhere in every call.
        changing = self.training or _torch.is_sharded(self)
        prepack, int8 = not changing and option(self, "prepack") is not False, option(self, "int8") is True
        x = attention_block(
            x,
            layout,
            parts.attention,
            kind.heads,
            scale=kind.scale,
            # Of probabilities the mode of the attention module decides, not that of its Dropout.
            attention_p=parts.attention.dropout.p if checks.attention_of(self).training else 0.0,
            hidden_p=dropout_rate(parts.attention.hidden_dropout),
            use_prepack=prepack,
            int8=int8,
            beside=beside[:4],
        )
        return mlp_block(
            x,
            parts.mlp,
            approximate=kind.approximate,
            hidden_p=dropout_rate(parts.mlp.dropout),
            use_prepack=prepack,
            int8=int8,
            beside=beside[4:],
            at_a_time=chunking.rows_of(self, x, layout),
        )
