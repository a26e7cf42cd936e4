"""report(): which modules are fast, which are not and why, and what the calls so far did."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bertfast import _ext, _torch, graphs
from bertfast.convert import accumulation, checks, chunking, sentences, trial
from bertfast.convert.counts import COMPILED, FAST, UNPADDED, calls, compiled_calls, uncounted
from bertfast.convert.embeddings import FastEmbeddings
from bertfast.convert.encoder import FastEncoder
from bertfast.convert.families import fast_class, of, stock_class
from bertfast.convert.layer import FastLayer
from bertfast.convert.masked_heads import FastMaskedHead, head_reason
from bertfast.convert.model import FastModel
from bertfast.convert.options import option
from bertfast.convert.plain import forward_is_replaced
from bertfast.convert.refusals import refusal
from bertfast.nn import fp8_state, prepack
from bertfast.nn.fp8_state import Recipe
from bertfast.triton import faster, verified

_LINE = 100  # characters of outcomes that share a line of a report; more stand below each other


@dataclass(frozen=True)
class Row:
    """One module: its name in the model, its stock class, "fast" or "fallback", the reason, and counts of outcomes."""

    name: str
    kind: str
    state: str
    reason: str
    calls: dict[str, int]


@dataclass(frozen=True)
class Report:
    """What `report` returns: print it, or take `to_dict()`.

    Attributes:
        model: the name of its class.
        rows: a module each.
        prepacked_bytes: copies of weights that are kept between calls: reordered ones on a CPU, joined ones on a GPU.
        graphs: bytes and number of captured calls.
        notes: what else there is to know, a sentence each.
    """

    model: str
    rows: tuple[Row, ...]
    prepacked_bytes: int
    graphs: graphs.Memory
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types throughout, so that json takes it."""
        return {
            "model": self.model,
            "fast": sum(row.state == "fast" for row in self.rows),
            "modules": [dict(vars(row)) for row in self.rows],
            "prepacked_bytes": self.prepacked_bytes,
            "graphs": {"number": self.graphs.graphs, "bytes": self.graphs.nbytes},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        fast = sum(row.state == "fast" for row in self.rows)
        lines = [f"bertfast: {fast} of {len(self.rows)} modules of {self.model} take the fast path"]
        width = max((len(row.name) for row in self.rows), default=0)
        for row in self.rows:
            outcomes = [f"{n} x {what}" for what, n in row.calls.items()]
            if sum(map(len, outcomes)) < _LINE:
                outcomes = ["; ".join(outcomes)] if outcomes else []
            first, *rest = [row.reason, *outcomes] if row.reason else outcomes or [""]
            lines.append(f"  {row.name:<{width}}  {row.state:<8}  {first}")
            lines += [f"  {'':<{width}}  {'':<8}  {outcome}" for outcome in rest]
        if self.prepacked_bytes:
            lines.append(f"  copies of weights: {self.prepacked_bytes / 2**20:.1f} MiB")
        if self.graphs.graphs:
            lines.append(f"  captured graphs: {self.graphs.graphs}, {self.graphs.nbytes / 2**20:.1f} MiB")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _static_reason(module: nn.Module, captured: bool, sharded: bool) -> str:
    """Why this module cannot be fast as it stands; empty where it can.

    captured: it is part of whole calls.
    sharded: its parameters are whole only in calls, which tell the rest.
    """
    if fast_class(module) is not None:
        decoder = getattr(module, "is_decoder", False) or getattr(getattr(module, "config", None), "is_decoder", False)
        if decoder:
            return "it is a decoder, left untouched"
        family = of(type(module))
        return (family and trial.verdict(family)) or "not optimised: call bertfast.optimize(model)"
    if forward_is_replaced(module):
        return "its forward was replaced"
    if isinstance(module, FastMaskedHead):
        return head_reason(module) or ""
    parameter = next(module.parameters(), None)
    reason = None
    if sharded:
        layer = isinstance(module, FastLayer) and parameter is not None
        return (checks.layer_reason(module, parameter.device, sharded=True) or "") if layer else ""
    if parameter is not None:
        asked = option(module, "gpu_kernels")
        reason = checks.environment_reason() or checks.tensor_reason(parameter.detach(), asked, captured)
        if reason is not None and _is_for_want_of_autocast(parameter, asked, captured):
            reason = f"without autocast {reason}"
    if reason is None and isinstance(module, FastLayer) and parameter is not None:
        reason = checks.layer_reason(module, parameter.device)
    if reason is None and isinstance(module, FastModel):
        reason = module.structure_reason()
    if reason is None and isinstance(module, FastEmbeddings):
        reason = checks.embeddings_reason(module)
    return reason or ""


def _is_for_want_of_autocast(parameter: nn.Parameter, asked: bool | None, captured: bool) -> bool:
    """Whether a call on this GPU would be fast under autocast to 16 bits, which nobody has turned on now."""
    if parameter.device.type != "cuda" or parameter.dtype is not torch.float32 or torch.is_autocast_enabled("cuda"):
        return False
    return checks.gpu_reason(parameter.device.index, asked, captured=captured, dtype=torch.bfloat16) is None


def _captured(model: nn.Module) -> set[nn.Module]:
    """Modules that take part in whole calls from ids to hidden states, which a GPU runs captured: models, their parts and heads."""
    models = {module for module in model.modules() if isinstance(module, FastModel)}
    heads = {module for module in model.modules() if not models.isdisjoint(module.modules())}
    return heads.union(*(module.modules() for module in models))


def _gpu_notes(model: nn.Module) -> list[str]:
    """What of the models inside that lie on a GPU is captured and fast, and how that compares with stock."""
    notes: dict[str, None] = {}  # in their order, each once
    for module in model.modules():
        parameter = next(module.parameters(), None) if isinstance(module, FastModel) else None
        if parameter is None or parameter.device.type != "cuda" or option(module, "gpu_kernels") is False:
            continue
        index, asked = parameter.device.index, option(module, "gpu_kernels")
        if option(module, "max_graphs") == 0:
            notes["nothing is captured in CUDA graphs: max_graphs is 0"] = None
            continue
        if (
            parameter.dtype is torch.float32
            and checks.gpu_reason(index, asked, captured=True, dtype=torch.bfloat16) is None
        ):
            notes[
                "float32 weights: under bfloat16 or float16 autocast all layers in training run from CUDA graphs, whatever the "
                "rows above say of float32 itself"
            ] = None
        if checks.gpu_reason(index, asked, captured=True, dtype=parameter.dtype) is not None:
            continue
        eager = checks.gpu_reason(index, asked, captured=False, dtype=parameter.dtype)
        rest = "take stock" if eager else "run our kernels eagerly, which launch more slowly than the GPU computes"
        advice = f" ({checks.TURN_ON} there too)" if eager else ""
        text = "on a GPU whole inference calls, and all layers in training, run from CUDA graphs"
        text += ", each bucket of sizes from its second call on"
        notes[f"{text}; embeddings in training and modules called one by one {rest}{advice}"] = None
        for train in (False, True):
            notes[faster.remark(checks.architecture(index), parameter.dtype, train)] = None
    return list(notes)


def _fp8_notes(model: nn.Module) -> list[str]:
    """Of models that were asked to multiply in FP8, which of them do, and what there is to know of it."""
    notes: dict[str, None] = {}
    for module in model.modules():
        if not isinstance(module, FastModel) or option(module, "precision") != "fp8":
            continue
        weight = module.embeddings.word_embeddings.weight
        # A float32 model multiplies in bfloat16 under autocast.
        dtype = torch.bfloat16 if weight.dtype is torch.float32 else weight.dtype
        reason = fp8_state.why_not(weight.device, dtype, module.config.hidden_size, module.config.intermediate_size)
        if reason is not None:
            notes[f"precision fp8 has no effect: {reason}"] = None
            continue
        when = "" if weight.dtype is torch.bfloat16 else " under bfloat16 autocast"
        trained = Recipe().layers(len(module.encoder.layer))
        which = (
            "" if trained else "in inference (training keeps the last layer in bfloat16, and this model has no other) "
        )
        notes[f"fast calls on a GPU multiply {which}in FP8{when}: not the numbers of the model's own dtype"] = None
        if weight.device.type == "cuda":
            arch = checks.architecture(weight.device.index)
            unverified = {op: why for op, why in verified.gate(arch).items() if verified.is_asked_for(op)}
            if unverified:
                notes[
                    f"of FP8 {', '.join(unverified)} are not verified on sm_{arch}: torch's own functions, slower than bfloat16's "
                    "kernels, run in their place"
                ] = None
    return list(notes)


def _attention_row(name: str, module: nn.Module) -> Row:
    """Of an attention module that transformers calls us from, under `attn_implementation="bertfast"`."""
    outcomes = calls(module)
    reason = "" if FAST in outcomes or UNPADDED in outcomes else next(iter(outcomes))
    return Row(name or "(model)", type(module).__name__, "fallback" if reason else "fast", reason, outcomes)


def _compiled_outcomes(model: nn.Module) -> dict[nn.Module, Counter[str]]:
    """What compiled graphs' nodes of all layers did, for each stack of layers and each layer."""
    outcomes: dict[nn.Module, Counter[str]] = {}
    for stack in model.modules():
        if not isinstance(stack, FastEncoder):
            continue
        for outcome, number in compiled_calls(stack).items():
            outcomes.setdefault(stack, Counter())[outcome] += number
            how = (FAST if outcome.startswith("kept padded") else UNPADDED) + COMPILED
            for layer in stack.layer:
                outcomes.setdefault(layer, Counter())[how] += number
    return outcomes


def _compiled_notes(model: nn.Module, outcomes: dict[nn.Module, Counter[str]]) -> list[str]:
    """Which calls of compiled graphs the rows above do not count."""
    stacks = {type(module) for module in model.modules() if isinstance(module, FastEncoder)}
    padded = [reasons for reasons in map(uncounted, stacks) if reasons is not None]
    if not padded:
        return (
            ["calls of compiled graphs are counted in the rows of the encoder and its layers alone"] if outcomes else []
        )
    reasons = "; ".join(dict.fromkeys(reason for reasons in padded for reason in reasons))
    why = reasons or "such as hidden states or attentions that were asked for"
    return [
        "torch.compile made graphs in this process, for this model or another of its class, which keep the padding "
        f"({why}): calls of these are not counted"
    ]


def report(model: nn.Module) -> Report:
    """Say of every module of a known family inside `model` whether it takes the fast path, and why not; stock or optimised alike.

    The state is that of the module now; counts are of all calls since `optimize`. Those of a base model tell how many calls it
    did itself ("from ids to hidden states": plain inference) and why others went module by module, which may be
    fast too; those of an encoder how many ran without padding, on a GPU in training also whether from a captured graph
    or why not, and why others stayed padded. Attention modules that called `register_attention`'s function have a row too.

    Calls of a compiled graph end in "(compiled)". They are counted at a stack and its layers where all layers are one node of the
    graph, by its parameters: models that share them share the counts, and new parameters begin at none. A note says where graphs
    were made whose calls cannot be counted.

    Raises:
        TypeError: where `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"bertfast.report takes a torch.nn.Module, got {type(model).__name__}")
    rows, captured, refused, compiled = [], _captured(model), refusal(model), _compiled_outcomes(model)
    sharded = any(map(_torch.is_sharded, model.modules()))
    for name, module in model.named_modules():
        stock = stock_class(module) or sentences.stock_class(module)
        if stock is not None or fast_class(module) is not None:
            reason = (refused if stock is None else None) or _static_reason(module, module in captured, sharded)
            kind = (stock or type(module)).__name__
            outcomes = {**calls(module), **compiled.get(module, {})}
            rows.append(Row(name or "(model)", kind, "fallback" if reason else "fast", reason, outcomes))
        elif calls(module):
            rows.append(_attention_row(name, module))
    notes = []
    absent = _ext.why_absent()
    if absent is not None:
        notes.append(f"the C++ kernels are missing, so the fast path is slow: {absent}")
    if not rows:
        notes.append(f"{refused}; the model was left untouched")
    fast = {row.name for row in rows if row.state == "fast"}
    layers = [module for name, module in model.named_modules() if isinstance(module, FastLayer) and name in fast]
    if layers:
        notes.append("where padding is removed, hidden states at padding positions are zeros")
    if any(map(chunking.size_of, layers)):
        notes.append(
            "chunk_size_feed_forward is set: fast layers cut their feed-forward too, into chunks of "
            f"{chunking.LEAST_ROWS} tokens or more"
        )
    if any(isinstance(module, FastMaskedHead) for module in model.modules()):
        notes.append("logits are not made in training: only those of masked tokens, inside the loss")
    if any(option(module, accumulation.NAME) for module in model.modules()):
        notes.append("losses are averaged over the labels of a whole step, where the caller gives num_items_in_batch")
    if any(option(module, "loss_over_padding") for module in model.modules()):
        notes.append("this head stays padded while gradients are enabled: its loss runs over padding too")
    if any(option(module, "int8") for module in model.modules()):
        notes.append("inference on a CPU multiplies 8-bit integers: not the numbers of the model's own dtype")
    notes += _compiled_notes(model, compiled) + _gpu_notes(model) + _fp8_notes(model)
    notes += [f"some calls are not captured in graphs: {reason}" for reason in graphs.reasons(model)]
    return Report(type(model).__name__, tuple(rows), prepack.memory(model), graphs.memory(model), tuple(notes))
