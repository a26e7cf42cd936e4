"""The function behind attn_implementation="bertfast", called as transformers calls it, beside the one registered as "sdpa"."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

import bertfast
from bertfast.convert import attention, counts
from bertfast.testing import assert_within_budget

FAST, UNPADDED = "fast", "fast, padding removed"
BATCH, SEQLEN, HEADS, SIZE = 2, 194, 4, 8
SDPA = AttentionInterface()["sdpa"]


def attention_module(**attributes: Any) -> nn.Module:
    module = nn.Module()
    module.is_causal = False
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def heads(*, keys: int = HEADS, size: int = SIZE, key_length: int = SEQLEN, dtype=torch.float32) -> list[Tensor]:
    shapes = [(BATCH, HEADS, SEQLEN), (BATCH, keys, key_length), (BATCH, keys, key_length)]
    return [torch.randn(*shape, size, dtype=dtype) for shape in shapes]


def call(function: Any, module: nn.Module, tensors: list[Tensor], mask: Tensor | None = None, **given: Any) -> Tensor:
    out, probabilities = function(module, *tensors, mask, **given)
    assert probabilities is None
    assert out.is_contiguous()
    return out


def compare(module: nn.Module, tensors: list[Tensor], mask: Tensor | None = None, **given: Any) -> dict[str, int]:
    """What our function did; its result is as near to float64's as sdpa's, or sdpa's own."""
    ours, stock = (call(f, module, tensors, mask, **given).detach() for f in (attention.attention_forward, SDPA))
    exact = mask.double() if mask is not None and mask.is_floating_point() else mask
    assert_within_budget(ours, stock, call(SDPA, module, [t.double() for t in tensors], exact, **given).detach())
    did = counts.calls(module)
    if not did.keys() & {FAST, UNPADDED}:
        assert torch.equal(ours, stock)
    return did


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_keys_shared_by_groups_of_heads(groups, dtype):
    module = attention_module(num_key_value_groups=groups)
    assert compare(module, heads(keys=HEADS // groups, dtype=dtype), scaling=0.3) == {FAST: 1}


def test_the_scale_may_be_left_out():
    assert compare(attention_module(), heads()) == {FAST: 1}


NUMBERS = torch.randn(BATCH, HEADS, SEQLEN, SEQLEN, generator=torch.Generator().manual_seed(1))
BEGINS_WITH_PADDING = torch.arange(SEQLEN).view(1, 1, 1, -1).expand(BATCH, 1, 1, -1) % 3 > 0  # which is not packed


@pytest.mark.parametrize(
    "mask",
    [
        NUMBERS,
        NUMBERS[:1, :1],
        NUMBERS[:, :1],
        NUMBERS > 0,
        BEGINS_WITH_PADDING,
        NUMBERS.masked_fill(NUMBERS > 1, -torch.inf),
    ],
    ids=["numbers", "one for all", "of all heads", "bool of each head", "keys alone", "infinite"],
)
def test_masks_of_any_shape(mask):
    assert compare(attention_module(), heads(), mask) == {FAST: 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_causal": True}, "it is causal"),
        ({"module": {"is_causal": True}}, "it is causal"),
        ({"tensors": {"key_length": 195}}, "it is cross attention, or reads a cache"),
        ({"tensors": {"size": 264}}, "its heads have 264 dimensions; the kernels take 256"),
        (
            {"tensors": {"dtype": torch.float16}},
            "hidden states are torch.float16; the kernels take float32 and bfloat16",
        ),
        ({"position_bias": NUMBERS}, "position_bias was given"),
        ({"something_new": 3}, "something_new was given"),
        ({"mask": NUMBERS.clone().requires_grad_()}, "the attention mask needs a gradient"),
        (
            {"mask": torch.full((BATCH, 1, SEQLEN, SEQLEN), torch.finfo(torch.float32).min)},
            "a query may attend to nothing",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_goes_to_sdpa(change, reason):
    given = {name: value for name, value in change.items() if name not in ("module", "tensors", "mask")}
    module = attention_module(**change.get("module", {}))
    assert compare(module, heads(**change.get("tensors", {})), change.get("mask"), **given) == {f"sdpa: {reason}": 1}


@pytest.mark.parametrize("shape", [(1, 191), (40, 20)])
def test_short_float32_sequences_go_to_sdpa(shape):
    tensors = [torch.randn(shape[0], HEADS, shape[1], SIZE) for _ in range(3)]
    assert compare(attention_module(), tensors) == {"sdpa: short float32 sequences gain nothing": 1}
    assert compare(attention_module(), [t.bfloat16() for t in tensors]) == {FAST: 1}


def test_what_sdpa_does_not_read_is_not_read():
    given = {"sliding_window": 8, "num_items_in_batch": torch.tensor(3), "position_ids": torch.arange(SEQLEN)[None]}
    assert compare(attention_module(), heads(), **given) == {FAST: 1}


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sinks"])
def test_what_nobody_computes_is_refused(name):
    with pytest.raises(
        ValueError, match=f'does not compute {name}, which Module asks for.*attn_implementation="eager"'
    ):
        call(attention.attention_forward, attention_module(), heads(), **{name: torch.tensor(3.0)})


def mask_of(**given: Any) -> tuple[Tensor | None, Tensor | None]:
    """Our mask and sdpa's for the same call, as transformers' mask functions make it."""
    common = {"batch_size": BATCH, "q_length": 5, "kv_length": 5, "q_offset": 0, "kv_offset": 0, "device": "cpu"}
    common |= {
        "mask_function": bidirectional_mask_function,
        "allow_is_causal_skip": False,
        "allow_is_bidirectional_skip": True,
    }
    arguments = common | given
    stock = AttentionMaskInterface()["sdpa"]
    if "cache_position" in inspect.signature(stock).parameters:  # up to transformers 5.2
        del arguments["q_offset"]
        arguments["cache_position"] = torch.arange(arguments.pop("q_length"))
    return tuple(f(**arguments) for f in (attention.padding_mask, stock))


PADDING = torch.tensor([[True, True, True, False, False], [True] * 5])


@pytest.mark.parametrize(
    "given",
    [
        {"attention_mask": PADDING},
        {"attention_mask": PADDING, "q_length": 3},
        {"attention_mask": PADDING, "mask_function": causal_mask_function},
        {"attention_mask": PADDING, "kv_length": 6},
        {"attention_mask": PADDING, "kv_length": 4, "q_length": 4, "kv_offset": 1},
        {"attention_mask": PADDING | True, "allow_is_bidirectional_skip": False},
        {"attention_mask": PADDING | True},
        {"attention_mask": None},
    ],
)
def test_the_mask_is_that_of_sdpa(given):
    ours, stock = mask_of(**given)
    assert (ours is None) == (stock is None)
    if ours is not None:
        assert ours.dtype == stock.dtype
        assert torch.equal(ours.expand(stock.shape), stock)


def test_a_mask_of_padding_alone_takes_one_row():
    ours, _ = mask_of(attention_mask=PADDING)
    assert ours.shape == (BATCH, 1, 5, 5)
    assert ours.stride(2) == 0


def test_registering_again_is_the_same():
    for _ in range(2):
        bertfast.register_attention()
        assert AttentionInterface()["bertfast"] is attention.attention_forward
        assert AttentionMaskInterface()["bertfast"] is attention.padding_mask
    with pytest.raises(TypeError, match=r"unpad must be True or False, got 'no'"):
        bertfast.register_attention(unpad="no")
