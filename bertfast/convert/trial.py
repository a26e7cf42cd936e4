"""Whether the installed transformers still computes what the fused classes compute. Tried once in a process, before the first swap.

Releases rename arguments and move what lies between the modules. A tiny model is run stock and fast, in inference and training,
with hidden states and attentions asked for; where the two differ, or ours raises, models stay stock and `report` says why. So a
release that bertfast does not know costs its speed, never a crash or a wrong number.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.bert import modeling_bert as hf

from bertfast.convert import checks

Swap = Callable[[nn.Module, bool], None]
_TOLERANCE = 1e-4  # of the largest element; float32 rounding in two layers stays below 1e-5
_LENGTHS = (7, 3, 5)
_lock = threading.Lock()
_verdicts: list[str | None] = []  # one entry once tried: None, or why models stay stock


def verdict() -> str | None:
    """Why models stay stock, where a trial found that out; None where it passed and where none was made."""
    return _verdicts[0] if _verdicts else None


def run(swap: Swap) -> str | None:
    """The verdict, by a trial where none was made yet.

    swap(model, masked_head) puts the fast classes into a model.
    """
    with _lock:
        # With somebody's code in the place of stock's, fast models run stock code, and a trial would say nothing.
        if not _verdicts and checks.environment_reason() is None:
            # A thread of its own has none of the caller's modes: gradients, autocast, default device, fake tensors.
            thread = threading.Thread(target=lambda: _verdicts.append(_tried(swap)), name="bertfast-trial")
            thread.start()
            thread.join()
        return verdict()


def _tried(swap: Swap) -> str | None:
    what = "a tiny model"
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for what, stock, fast in _models(swap):
                for call, outcome in _outcomes(stock, fast):
                    what = f"{type(stock).__name__} {call}"
                    for name, ours, theirs in outcome:
                        difference = _difference(ours, theirs)
                        if difference is not None:
                            return _sentence(f"{what}: {name} {difference}")
    except Exception as error:  # whatever a future release makes of it, the user's model must go on
        return _sentence(f"{what}: {type(error).__name__}: {error}")
    return None


def _sentence(difference: str) -> str:
    return (
        f"transformers {transformers.__version__} is not what this bertfast was made for ({difference}), so models stay stock; "
        "update bertfast, or install a transformers that docs/versions.md lists"
    )


def _models(swap: Swap) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Small models of random weights, stock and fast, ready for `_outcomes`."""
    generator = torch.Generator().manual_seed(0)
    for head, implementation in (
        (hf.BertModel, "eager"),
        (hf.BertForSequenceClassification, "sdpa"),
        (hf.BertForMaskedLM, "sdpa"),
    ):
        config = transformers.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation=implementation,
        )
        stock = head(config).to(torch.float32)
        for parameter in stock.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        fast = copy.deepcopy(stock)
        swap(fast, head is hf.BertForMaskedLM)
        yield head.__name__, stock, fast


_Outcome = Iterator[tuple[str, Any, Any]]


def _outcomes(stock: Any, fast: Any) -> Iterator[tuple[str, _Outcome]]:
    """What both make of each kind of call: its name, and pairs of named values."""
    batch, seqlen = len(_LENGTHS), max(_LENGTHS)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (batch, seqlen), generator=generator)
    mask = (torch.arange(seqlen) < torch.tensor(_LENGTHS)[:, None]).long()
    real = mask.bool()
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    if isinstance(stock, hf.BertForSequenceClassification):
        inputs["labels"] = torch.tensor([0, 1, 1])
    elif isinstance(stock, hf.BertForMaskedLM):
        inputs["labels"] = ids.masked_fill(~real | (ids % 3 > 0), -100)

    def both(grad: bool, **arguments: Any) -> _Outcome:
        with torch.set_grad_enabled(grad):
            ours, theirs = (model(**arguments) for model in (fast, stock))
        for name, value in theirs.items():
            if isinstance(ours.get(name), Tensor | tuple):
                yield name, _at(ours[name], real), _at(value, real)

    def training() -> _Outcome:
        losses = []
        for model in (fast, stock):
            outputs = model.train()(**inputs)
            loss = outputs.loss if "labels" in inputs else outputs.last_hidden_state[real].square().sum()
            loss.backward()
            losses.append(loss.detach())
            model.eval()
        yield "loss", *losses
        for (name, theirs), ours in zip(stock.named_parameters(), fast.parameters(), strict=True):
            if theirs.grad is not None and not name.endswith("key.bias"):  # zero but for rounding
                yield f"the gradient of {name}", ours.grad, theirs.grad

    stock.eval(), fast.eval()
    yield "in inference", both(False, **inputs)
    yield "with gradients", both(True, **inputs)
    yield "in training", training()
    yield "asked for hidden states", both(False, **inputs, output_hidden_states=True)
    if isinstance(stock, hf.BertModel):
        yield "asked for attentions", both(False, **inputs, output_attentions=True)
        embeds = torch.randn(batch, seqlen, 32, generator=generator)
        yield "given inputs_embeds", both(False, inputs_embeds=embeds, attention_mask=mask)


def _at(value: Any, real: Tensor) -> Any:
    """Real tokens alone of what has one row a token; tuples element by element."""
    if isinstance(value, tuple):
        return tuple(_at(each, real) for each in value)
    return value[real] if value.dim() == 3 and value.shape[:2] == real.shape else value


def _difference(ours: Any, theirs: Any) -> str | None:
    if isinstance(theirs, tuple):
        if not isinstance(ours, tuple) or len(ours) != len(theirs):
            return f"are {len(ours) if isinstance(ours, tuple) else type(ours).__name__}, not {len(theirs)}"
        return next(filter(None, map(_difference, ours, theirs)), None)
    if ours is None or ours.shape != theirs.shape:
        return "is missing" if ours is None else f"is {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    error = float((ours - theirs).detach().abs().max()) / max(float(theirs.detach().abs().max()), 1e-3)
    return None if error <= _TOLERANCE else f"differs by {error:.1e}"
