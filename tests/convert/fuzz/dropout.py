"""What holds of dropout, where the numbers drawn are not stock's.

The same random state gives the same numbers; a pass without gradients drops what a pass with them drops, as gradient caching
and reentrant checkpointing need; gradients are those of the numbers that came out; as much is dropped as was asked for.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fuzz.build import Inputs
from fuzz.draw import Call, Case
from fuzz.family import family_of
from fuzz.judge import hidden_logits, reads_padding, rounding_of
from fuzz.run import Observation, observe
from fuzz.subject import Subject

RECORDED = ("output_hidden_states", "output_attentions")


def _distance(a: Tensor, b: Tensor) -> float:
    """Root mean square difference, relative to b's root mean square."""
    size = b.double().square().mean().sqrt().clamp_min(1e-6)
    return float(((a.double() - b.double()).square().mean().sqrt() / size).nan_to_num(nan=0.0))


def laws(
    subject: Subject,
    stock: Subject,
    case: Case,
    call: Call,
    inputs: Inputs,
    seed: int,
    dtype: torch.dtype,
    first: Observation,
) -> list[str]:
    """What is broken of them by the optimised model, whose call at `seed` gave `first`."""
    if call.around not in ("plain", "reentrant"):
        return []
    problems = []
    model = subject.model
    if any(getattr(m, "max_norm", None) is not None for m in model.modules()):
        return []  # each pass scales the rows of such a table in place, so that no two passes read the same numbers
    flags = {m: m.training for m in model.modules()}

    def again(**other: object) -> Observation:
        model.zero_grad(set_to_none=True)
        for module, training in flags.items():
            module.training = training
        return observe(subject, case, replace(call, **other), inputs, seed)

    def same(one: Tensor, other: Tensor | None) -> bool:
        if _equal(one, other):
            return True
        # A captured call runs on sizes that are rounded up, and products of more rows may round otherwise.
        near = case.captured and other is not None and one.shape == other.shape
        return near and _distance(one, other) <= rounding_of(case, dtype)  # type: ignore[arg-type]

    second = again()
    for name, value in first.tensors.items():
        if not same(value, second.tensors.get(name)):
            problems.append(f"{name} is another when dropout is drawn again from the same state")
    for name, grad in first.gradients.items():
        if case.captured and name.endswith(f"{family_of(model).places.attention.key}.bias"):  # zero but for rounding
            continue
        if grad is not None and not same(grad, second.gradients.get(name)):
            problems.append(f"the gradient of {name} is another when dropout is drawn again from the same state")
    if problems:
        return problems
    if case.seed % 4 == 0 and call.around == "plain" and first.gradients and dtype is torch.float32:
        problems += _slope(subject, first, again)
    if case.seed % 4 == 1 and call.around == "plain" and not hidden_logits(case, call):
        problems += _strength((subject, stock), case, call, inputs, seed, flags)
    tolerance = 4 * rounding_of(case, dtype)
    checkpointing = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    if call.prefix and checkpointing:
        return (
            problems  # transformers drops the cache of checkpointed layers where gradients are enabled, and there alone
        )
    other = "no_grad" if call.mode == "grad" else "train no_grad" if call.mode == "train" else ""
    if other:
        problems += _alike(case, call, inputs, first, again(mode=other, around="plain"), tolerance, "without gradients")
    if call.around == "reentrant":
        plain = again(around="plain")
        problems += _alike_gradients(first, plain, 4 * tolerance, "without the checkpoint around the model")
    # What transformers records inside a reentrant checkpoint has no gradients, so the objective would be another.
    recorded = any(getattr(subject.base.config, n, False) or call.options.get(n) for n in RECORDED)
    if call.mode == "train" and checkpointing and not problems and not recorded:
        for module in checkpointing:
            module.gradient_checkpointing = False
        plain = again(checkpoint="")
        for module in checkpointing:
            module.gradient_checkpointing = True
        problems += _alike_gradients(first, plain, 4 * tolerance, "without checkpointing")
    return problems


def _slope(subject: Subject, first: Observation, again: Callable[[], Observation]) -> list[str]:
    """Whether the gradient is the slope of what the same random state gives a little to either side, along itself."""
    parameters = dict(subject.model.named_parameters())
    grads = {n.removeprefix("parameter "): g for n, g in first.gradients.items() if g is not None}
    grads = {n: g.float() for n, g in grads.items() if n in parameters}
    length = sum(float(g.square().sum()) for g in grads.values()) ** 0.5
    if not 1e-4 < length < 1e6 or any(
        p._backward_hooks for p in parameters.values()
    ):  # a user's hook gives another gradient
        return []
    before = {n: parameters[n].detach().clone() for n in grads}
    errors = []
    for change in (1e-3, 4e-3, 1.6e-2):
        sides = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for name, grad in grads.items():
                    step = sign * change * max(abs(first.objective), 0.1) / length**2
                    parameters[name].copy_(before[name] + step * grad)
            sides.append(again().objective)
        slope = (sides[0] - sides[1]) / (2 * change * max(abs(first.objective), 0.1))
        errors.append(abs(slope - 1.0))
    with torch.no_grad():
        for name, value in before.items():
            parameters[name].copy_(value)
    return [f"the gradient is {errors} off the slope"] if min(errors) > 0.05 else []


def _strength(
    subjects: tuple[Subject, Subject],
    case: Case,
    call: Call,
    inputs: Inputs,
    seed: int,
    flags: dict[nn.Module, bool],
) -> list[str]:
    """Whether dropout moves the outputs about as far as stock's does, in the mean of several draws."""
    moved = []
    silent = replace(call, mode="train no_grad" if call.mode.startswith("train") else "no_grad")
    for subject in subjects:
        training = list(flags.values())
        for module in subject.model.modules():
            module.training = False
        at_rest = _states(observe(subject, case, silent, inputs, seed), case, inputs)
        for module, flag in zip(subject.model.modules(), training, strict=False):
            module.training = flag
        if at_rest is None or at_rest.numel() < 200:
            return []
        draws = [_states(observe(subject, case, silent, inputs, seed + 100 + i), case, inputs) for i in range(6)]
        moved.append(sum(_distance(d, at_rest) for d in draws if d is not None))
    if max(moved) > 0.05 and not 0.4 <= moved[0] / max(moved[1], 1e-9) <= 2.5:
        return [f"dropout moves the outputs by {moved[0] / 6:.2g}, stock's by {moved[1] / 6:.2g}"]
    return []


def _states(seen: Observation, case: Case, inputs: Inputs) -> Tensor | None:
    """The largest output, at real tokens."""
    values = [inputs.at_tokens(v, case) for v in seen.tensors.values()]
    values = [v for v in values if v.is_floating_point() and v.numel()]
    return max(values, key=Tensor.numel) if values else None


def _equal(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _alike(
    case: Case, call: Call, inputs: Inputs, one: Observation, two: Observation, tolerance: float, what: str
) -> list[str]:
    if two.error is not None:
        return [f"{what} the call raises {type(two.error).__name__}: {str(two.error)[:150]}"]
    problems = []
    silent = replace(call, mode="no_grad")
    for name, value in one.tensors.items():
        other = two.tensors.get(name)
        if other is None or not value.is_floating_point() or reads_padding(case, silent, inputs, value):
            continue
        a, b = (inputs.at_tokens(v, case) for v in (value, other))
        if a.numel() and _distance(a, b) > tolerance:
            problems.append(f"{name} differs by {_distance(a, b):.2g} {what}, from the same random state")
    if one.random is not None and two.random is not None and not torch.equal(one.random, two.random):
        problems.append(f"the random state after the call is another {what}")
    return problems


def _alike_gradients(one: Observation, two: Observation, tolerance: float, what: str) -> list[str]:
    grads = {n: (g, two.gradients.get(n)) for n, g in one.gradients.items() if g is not None}
    if any(b is None for _, b in grads.values()):
        return [f"a gradient is missing {what}"]
    whole = [torch.cat([g[i].double().flatten() for g in grads.values()]) for i in (0, 1)] if grads else []
    if whole and _distance(*whole) > tolerance:
        return [f"gradients differ by {_distance(*whole):.2g} {what}, from the same random state"]
    return []
