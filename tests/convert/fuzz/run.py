"""A case, run: three models go through its changes and calls; what each call gave is observed and compared."""

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bertfast
from bertfast.testing import rounding_step
from fuzz import captures, changes, judge
from fuzz.build import Inputs, inputs_of, model_of, parameters_of
from fuzz.changes import CHANGES, PATCHES
from fuzz.draw import Call, Case, draw
from fuzz.family import attention_dropouts, base_of, encoder_of, family_of
from fuzz.rounding import split_products
from fuzz.subject import Subject, checkpoint_layers


@dataclass
class Observation:
    """What one call of one model gave.

    Attributes:
        error: what it raised, in its forward or its backward, as `stage` says.
        tensors: every output tensor by a name of its place, detached.
        structure: types, lengths and None of the outputs.
        gradients: of parameters and floating inputs, None where there is none; empty where no backward was run.
        warnings: category and text.
        events: what hooks saw.
        state: flags, buffers and config after the call.
        random: the state of torch's generator after the forward.
        objective: what was differentiated.
    """

    error: Exception | None = None
    stage: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    structure: Any = None
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    random: Tensor | None = None
    objective: float = 0.0


def structure_of(outputs: Any) -> Any:
    """Types and lengths, without numbers and shapes."""
    if isinstance(outputs, Tensor):
        return f"{outputs.dtype}"
    if isinstance(outputs, tuple):
        return (type(outputs).__name__, [structure_of(o) for o in outputs])
    if isinstance(outputs, dict):
        return (type(outputs).__name__, {n: structure_of(o) for n, o in outputs.items()})
    return type(outputs).__name__


def tensors_of(outputs: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        yield name or "output", outputs
    elif isinstance(outputs, dict):
        for key, value in outputs.items():
            yield from tensors_of(value, f"{name}.{key}".strip("."))
    elif isinstance(outputs, tuple):
        for i, value in enumerate(outputs):
            yield from tensors_of(value, f"{name}[{i}]")


def objective_of(case: Case, call: Call, outputs: Any, inputs: Inputs) -> Tensor | None:
    """A number to differentiate: the model's loss, or a fixed random projection of everything at real tokens as well."""
    total = None
    generator = torch.Generator().manual_seed(case.seed)
    whole = call.objective == "all" and not judge.hidden_logits(case, call)
    tensors = dict(tensors_of(outputs))
    losses = [name for name, value in tensors.items() if value.dim() == 0]
    for name, value in tensors.items():
        if not value.is_floating_point():
            continue
        if name in losses:
            if not inputs.undefined_loss(case):
                total = value if total is None else total + value
        elif whole or not losses:
            chosen = inputs.at_tokens(value, case)
            if chosen.numel():
                weights = torch.randn(chosen.shape, generator=generator)
                term = (chosen * weights.to(chosen.dtype)).mean()
                total = term if total is None else total + term
    return total


@contextmanager
def mode(call: Call) -> Iterator[None]:
    with ExitStack() as stack:
        if call.mode == "inference":
            stack.enter_context(torch.inference_mode())
        else:
            stack.enter_context(torch.set_grad_enabled(call.mode in ("grad", "train")))
        if call.autocast:
            stack.enter_context(torch.autocast("cpu", dtype=getattr(torch, call.autocast)))
        yield


def prepare(model: nn.Module, call: Call) -> None:
    """The modes of the modules, as this call wants them."""
    model.train(call.mode.startswith("train"))
    if call.monte_carlo:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.train()
    if call.checkpoint:
        with contextlib.suppress(ValueError):  # transformers refuses where one layer stands in two places
            checkpoint_layers(base_of(model), reentrant=call.checkpoint == "reentrant")
    model.zero_grad(set_to_none=True)


def forward(
    model: nn.Module, case: Case, call: Call, inputs: Inputs, dtype: torch.dtype
) -> tuple[Any, dict[str, Tensor], Any]:
    """Outputs, tensors whose gradients are wanted by name, and the objective where the way of calling made one."""
    kwargs = {**inputs.arguments(dtype), **call.options}
    args: list[Any] = []
    if call.positional and "inputs_embeds" not in kwargs:
        args = [kwargs.pop(name, None) for name in parameters_of(case)[:4]]
    leaves: dict[str, Tensor] = {}
    if "inputs_embeds" in kwargs and call.mode in ("grad", "train"):
        leaves["inputs_embeds"] = kwargs["inputs_embeds"] = kwargs["inputs_embeds"].detach().requires_grad_()
    differentiable = call.mode in ("grad", "train")
    if call.around == "plain" or (call.around == "reentrant" and not differentiable):
        return model(*args, **kwargs), leaves, None
    if call.around == "reentrant":
        box: list[Any] = []

        def again(anchor: Tensor, *states: Tensor) -> Tensor:
            if states:
                kwargs["inputs_embeds"] = states[0]
            outputs = model(*args, **kwargs)
            box.append(outputs)
            with torch.enable_grad():
                total = objective_of(case, call, outputs, inputs)
            return anchor * 0 if total is None else total + anchor.to(total.dtype) * 0

        anchor = torch.zeros((), requires_grad=True)
        total = checkpoint(again, anchor, *leaves.values(), use_reentrant=True)
        return box[0], leaves, total
    half = {name: p.detach() * 0.5 for name, p in model.named_parameters()}
    if call.around == "functional_call":
        if differentiable:
            half = {name: p.requires_grad_() for name, p in half.items()}
            leaves |= half
        return torch.func.functional_call(model, half, tuple(args), kwargs), leaves, None

    def of(parameters: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(model, parameters, tuple(args), kwargs)

    if call.around == "func.grad":
        return torch.func.grad(lambda p: objective_of(case, call, of(p), inputs))(half), leaves, None
    if call.around == "jvp":
        return torch.func.jvp(lambda p: tuple(v for _, v in tensors_of(of(p))), (half,), (half,)), leaves, None
    stacked = {name: torch.stack([p, p * 0.5]) for name, p in half.items()}
    outputs = torch.func.vmap(lambda p: tuple(v for _, v in tensors_of(of(p))))(stacked)
    return tuple(tuple(value.unbind(0)) for value in outputs), leaves, None


def observe(subject: Subject, case: Case, call: Call, inputs: Inputs, seed: int) -> Observation:
    """One call of one model, with a backward where gradients are enabled."""
    seen = Observation()
    model = subject.model
    dtype = next(model.parameters()).dtype
    subject.events.clear()
    torch.manual_seed(seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            seen.stage = "forward"
            with mode(call):
                outputs, leaves, total = forward(model, case, call, inputs, dtype)
            seen.random = torch.get_rng_state()
            seen.structure = structure_of(outputs)
            seen.tensors = {n: v.detach() for n, v in tensors_of(outputs)}
            if call.mode in ("grad", "train"):
                seen.stage = "backward"
                with mode(call) if call.around == "reentrant" else contextlib.nullcontext():
                    total = objective_of(case, call, outputs, inputs) if total is None else total
                    if total is not None and total.requires_grad:
                        seen.objective = float(total.detach())
                        total.backward()
                        leaves |= {f"parameter {n}": p for n, p in model.named_parameters()}
                        seen.gradients = {n: _dense(p.grad) for n, p in leaves.items()}
        except Exception as error:
            seen.error = error
    seen.warnings = [(w.category.__name__, str(w.message)) for w in caught]
    seen.events = list(subject.events)
    seen.state = {
        "training": [m.training for m in model.modules()],
        "config": {
            n: v for n, v in vars(subject.base.config).items() if isinstance(v, (bool, int, float, str, type(None)))
        },
        "parameters": [(n, p.requires_grad, p.dtype) for n, p in model.named_parameters()],
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
    }
    return seen


def _dense(grad: Tensor | None) -> Tensor | None:
    if grad is None:
        return None
    grad = grad.detach()
    return grad.to_dense() if grad.layout is not torch.strided else grad.clone()


def drops(model: nn.Module) -> bool:
    """Whether a call of the model as it stands draws dropout in its base model, where stock's numbers are others."""
    attention = dict(attention_dropouts(model))
    inside = [module for part in (base_of(model).embeddings, encoder_of(model)) for module in part.modules()]
    return any(
        module.p > 0 and attention.get(module, module).training for module in inside if isinstance(module, nn.Dropout)
    )


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        differences: in words, empty where there are none.
        raised: how many calls raised, in stock and here alike.
        routes: how often modules of the optimised model took each way.
        ratios: of each compared tensor, its error as a share of what is allowed.
        applied: how often each change was done.
    """

    case: Case
    differences: list[str] = field(default_factory=list)
    calls: int = 0
    raised: Counter = field(default_factory=Counter)
    routes: Counter = field(default_factory=Counter)
    ratios: list[tuple[float, str]] = field(default_factory=list)
    applied: Counter = field(default_factory=Counter)


LEFT_BY_RECORDING = {"forward"}  # transformers 5.0 and 5.1 leave it on modules, and `restore` drops it
Make = Callable[[nn.Module, Case], nn.Module]


def optimised(model: nn.Module, case: Case) -> nn.Module:
    return bertfast.optimize(model, **case.optimize)


def _change(subjects: list[Subject], case: Case, index: int, patches: ExitStack, outcome: Outcome) -> None:
    for place, name in enumerate(case.calls[index].changes):
        seed = f"{case.seed} {index} {place}"
        if name in PATCHES:
            patches.enter_context(PATCHES[name][0](Random(seed), family_of(subjects[0].model)))
            outcome.applied[name] += 1
            continue
        results = []
        for subject in subjects:
            torch.manual_seed(case.seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    CHANGES[name][0](subject, Random(seed))
                    results.append("done")
                except Exception as error:
                    results.append(type(error).__name__)
        outcome.applied[name] += results[0] == "done"
        if results[0] != results[1]:
            outcome.differences.append(
                f"call {index}: the change {name} is {results[0]} for stock, {results[1]} for ours"
            )


def _other_weights(stock: Subject, ours: Subject) -> list[str]:
    """The same changes leave the same weights, but for a product's last digit (a merged adapter's)."""
    one, two = (dict(s.model.named_parameters()) for s in (stock, ours))
    if one.keys() != two.keys():
        return [f"parameters are others than stock's: {sorted(one.keys() ^ two.keys())[:6]}"]
    return [
        f"{name} has other values than stock's"
        for name, p in one.items()
        if not torch.allclose(p, two[name], rtol=8 * rounding_step(p.dtype), atol=1e-5, equal_nan=True)
    ]


def _synchronise(oracle: Subject, stock: Subject) -> None:
    """The oracle is in float64, and has exactly the numbers that stock has."""
    oracle.model.double()
    with torch.no_grad():
        for (_, p), (_, q) in zip(oracle.model.named_parameters(), stock.model.named_parameters(), strict=True):
            p.data = q.detach().double().clone()
        for (_, p), (_, q) in zip(oracle.model.named_buffers(), stock.model.named_buffers(), strict=True):
            p.data = (q.detach().double() if q.is_floating_point() else q.detach()).clone()


def run(seed_or_case: int | Case, make: Make = optimised) -> Outcome:
    """All calls of a case. make: what becomes of the copy that is compared with stock, instead of `bertfast.optimize`."""
    from fuzz import dropout

    case = draw(seed_or_case, changes.WEIGHTS) if isinstance(seed_or_case, int) else seed_or_case
    outcome = Outcome(case)
    dtype = getattr(torch, case.dtype)
    built = model_of(case)
    stock = Subject(built.to(dtype))
    plain = make is not optimised
    ours = Subject(make(copy.deepcopy(stock.model), case), None if plain else dict(case.optimize))
    oracle = Subject(copy.deepcopy(stock.model).double())
    subjects = [stock, ours, oracle]
    with ExitStack() as patches:
        patches.enter_context(captures.surroundings(case))
        for index, call in enumerate(case.calls):
            _change(subjects, case, index, patches, outcome)
            if make is optimised:
                outcome.differences += [f"call {index}: {p}" for p in _other_weights(stock, ours)]
            _synchronise(oracle, stock)
            for subject in subjects:
                prepare(subject.model, call)
            inputs = inputs_of(case, index, stock.model)
            now = next(stock.model.parameters()).dtype
            seed = case.seed % 2**31 + index
            outcome.calls += 1
            for subject in subjects:
                captures.rehearse(subject, case, call, inputs, seed)
            one, two = (observe(s, case, call, inputs, seed) for s in (stock, ours))
            problems = judge.compare_structure(case, call, two, one)
            if one.error is not None:
                outcome.raised[type(one.error).__name__] += 1
            elif two.error is None:
                precision = getattr(torch, call.autocast) if call.autocast else now
                if drops(stock.model) or drops(ours.model):
                    problems += dropout.laws(ours, stock, case, call, inputs, seed, precision, two)
                else:
                    exact = observe(oracle, case, replace(call, autocast=""), inputs, seed)
                    ratios = judge.compare_numbers(case, call, inputs, two, [one], exact, precision)
                    if any(judge.ALLOWED < r < judge.DOUBTFUL for r, _ in ratios):
                        others = _other_roundings(stock, case, call, inputs, seed)
                        ratios = judge.compare_numbers(case, call, inputs, two, [one, *others], exact, precision)
                    outcome.ratios += [(r, f"call {index}: {what}") for r, what in ratios]
                    problems += [
                        f"{what} is {r:.3g} times what is allowed" for r, what in ratios if not r <= judge.ALLOWED
                    ]
            outcome.differences += [f"call {index}: {problem}" for problem in problems]
            if outcome.differences or _left_inside(stock.model):
                break
        if not plain and not _left_inside(stock.model):
            outcome.differences += _end(ours, stock, outcome)
            outcome.differences += captures.failures(outcome.routes)
    return outcome


def _other_roundings(stock: Subject, case: Case, call: Call, inputs: Inputs, seed: int) -> list[Observation]:
    """Stock's results when its products add up in other orders: how far right code may be off, where one sample is luck."""
    observations = []
    modes = [(m, m.training) for m in stock.model.modules()]
    for parts, once in ((2, True), (3, True), (2, False), (3, False)):
        for module, training in modes:
            module.training = training
        stock.model.zero_grad(set_to_none=True)
        with split_products(parts, once):
            observations.append(observe(stock, case, call, inputs, seed))
    return [o for o in observations if o.error is None]


def _left_inside(model: nn.Module) -> bool:
    """Whether torch.func left its own tensors in the model, as torch's functional_call does where a module is there twice."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(p) for p in model.parameters())


def _end(ours: Subject, stock: Subject, outcome: Outcome) -> list[str]:
    """What `report` says of the model, and whether `restore` leaves nothing behind."""
    try:
        outcome.routes = routes_of(ours.model)
        bertfast.restore(ours.model)
    except Exception as error:
        return [f"report or restore raises {type(error).__name__}: {error}"]
    problems = []
    for (name, one), (_, two) in zip(ours.model.named_modules(), stock.model.named_modules(), strict=False):
        if type(one) is not type(two) and "Fast" in type(one).__qualname__:
            problems.append(f"restore leaves {name or 'the model'} a {type(one).__qualname__}")
        left = (one.__dict__.keys() ^ two.__dict__.keys()) - LEFT_BY_RECORDING
        if left:
            problems.append(f"restore leaves {name or 'the model'} with {sorted(left)}")
    return problems[:2]


def routes_of(model: nn.Module) -> Counter:
    routes: Counter = Counter()
    for row in bertfast.report(model).to_dict()["modules"]:
        routes.update({f"{row['kind']}: {how}": n for how, n in row["calls"].items()})
    return routes
