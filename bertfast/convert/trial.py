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

from bertfast.convert import checks
from bertfast.convert.families.record import Family

Swap = Callable[[nn.Module, bool], None]
_TOLERANCE = 1e-4  # of the largest element; float32 rounding in two layers stays below 1e-5
_LENGTHS = (7, 3, 5)
_lock = threading.Lock()
_THREAD = "bertfast-trial"
_verdicts: dict[str, str | None] = {}  # of the families that were tried: None, or why models stay stock


def verdict(family: Family) -> str | None:
    """Why models of a family stay stock, where a trial found that out; None where it passed and where none was made."""
    return _verdicts.get(family.name)


def is_here() -> bool:
    """Whether this is the thread of a trial, whose models are to stay as they are where they optimise themselves when made."""
    return threading.current_thread().name == _THREAD


def run(family: Family, swap: Swap) -> str | None:
    """The verdict, by a trial where none was made yet.

    swap(model, masked_head) puts the fast classes into a model.
    """
    with _lock:
        # With somebody's code in the place of stock's, fast models run stock code, and a trial would say nothing.
        if family.name not in _verdicts and checks.environment_reason() is None:
            # A thread of its own has none of the caller's modes: gradients, autocast, default device, fake tensors.
            thread = threading.Thread(
                target=lambda: _verdicts.update({family.name: _tried(family, swap)}), name=_THREAD
            )
            thread.start()
            thread.join()
        return verdict(family)


def _tried(family: Family, swap: Swap) -> str | None:
    what = "a tiny model"
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for what, stock, fast in _models(family, swap):
                for call, outcome in _outcomes(family, stock, fast):
                    what = f"{type(stock).__name__} {call}"
                    for name, ours, theirs in outcome:
                        difference = _difference(ours, theirs)
                        if difference is not None:
                            return sentence(f"{what}: {name} {difference}")
    except Exception as error:  # whatever a future release makes of it, the user's model must go on
        return sentence(f"{what}: {type(error).__name__}: {error}")
    return None


def sentence(difference: str) -> str:
    """Why models stay stock on the installed transformers."""
    return (
        f"transformers {transformers.__version__} is not what this bertfast was made for ({difference}), so models stay stock; "
        "update bertfast, or install a transformers that docs/versions.md lists"
    )


def _models(family: Family, swap: Swap) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Small models of random weights, stock and fast, ready for `_outcomes`: a base model, and a head of each kind."""
    generator = torch.Generator().manual_seed(0)
    first = [*family.first_token_heads, *family.pooled_heads]
    for head in (family.model, *first[:1], *list(family.masked_heads)[-1:]):
        implementation = "eager" if head is family.model else family.trial_attention
        config = family.tiny(attn_implementation=implementation)
        stock = head(config).to(torch.float32)
        for parameter in stock.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        fast = copy.deepcopy(stock)
        swap(fast, head in family.masked_heads)
        yield head.__name__, stock, fast


_Outcome = Iterator[tuple[str, Any, Any]]


def _outcomes(family: Family, stock: Any, fast: Any) -> Iterator[tuple[str, _Outcome]]:
    """What both make of each kind of call: its name, and pairs of named values."""
    batch, seqlen = len(_LENGTHS), max(_LENGTHS)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 50, (batch, seqlen), generator=generator)
    mask = (torch.arange(seqlen) < torch.tensor(_LENGTHS)[:, None]).long()
    real = mask.bool()
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if family.segments:
        inputs["token_type_ids"] = ids % stock.config.type_vocab_size
    kind = type(stock)
    if kind in family.masked_heads:
        inputs["labels"] = ids.masked_fill(~real | (ids % 3 > 0), -100)
    elif kind is not family.model:
        inputs["labels"] = torch.tensor([0, 1, 1])

    def both(grad: bool, **arguments: Any) -> _Outcome:
        with torch.set_grad_enabled(grad):
            ours, theirs = (model(**arguments) for model in (fast, stock))
        for name, value in theirs.items():
            if isinstance(ours.get(name), Tensor | tuple):
                yield name, _at(ours[name], real), _at(value, real)

    def training() -> _Outcome:
        losses, key_bias = [], f"{family.places.attention.key}.bias"
        for model in (fast, stock):
            outputs = model.train()(**inputs)
            loss = outputs.loss if "labels" in inputs else outputs.last_hidden_state[real].square().sum()
            loss.backward()
            losses.append(loss.detach())
            model.eval()
        yield "loss", *losses
        for (name, theirs), ours in zip(stock.named_parameters(), fast.parameters(), strict=True):
            if theirs.grad is not None and not name.endswith(key_bias):  # zero but for rounding
                yield f"the gradient of {name}", ours.grad, theirs.grad

    stock.eval(), fast.eval()
    yield "in inference", both(False, **inputs)
    yield "with gradients", both(True, **inputs)
    yield "in training", training()
    yield "asked for hidden states", both(False, **inputs, output_hidden_states=True)
    if kind is family.model:
        yield "asked for attentions", both(False, **inputs, output_attentions=True)
        embeds = torch.randn(batch, seqlen, stock.get_input_embeddings().embedding_dim, generator=generator)
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
