"""Whether what the optimised model gave is what stock gave: kinds first, then numbers against the float64 oracle.

The budget is the project's: error against float64 at most twice stock's, plus rounding. Errors are root mean squares over
whole tensors, since the largest of a few numbers is luck; the largest one is held to a looser bound, so that one wrong row
of many does not hide. Rounding is counted in steps at the size of the tensor, as many as a model of that depth has
roundings in a row: stock may hit a loss, or a gradient that is zero in exact arithmetic, by chance.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bertfast.testing import max_error, rms_error, rounding_step
from fuzz.draw import Call, Case
from fuzz.family import kind

if TYPE_CHECKING:
    from fuzz.build import Inputs
    from fuzz.run import Observation

ALLOWED = 1.0  # the share of what is allowed that is right
# Below this, one sample of stock's error may have been too small by luck; in float32 faults lie far above.
DOUBTFUL = 6.0
# transformers wraps a layer's forward for checkpointing when the class is made, so stock with another forward in its place no
# longer does it, and ours does; a reentrant checkpoint says this of a first pass without gradients.
OF_CHECKPOINTS = "None of the inputs have requires_grad=True"
QUIET = ("FutureWarning", "DeprecationWarning", "PendingDeprecationWarning", "UserWarning", "RuntimeWarning")


def rounding_of(case: Case, dtype: torch.dtype) -> float:
    """What an error may be, relative to the size of a tensor, where stock has none by luck: a few roundings for each layer.

    More of them in float32 and up, where a fault is a thousand times as large as all roundings together.
    """
    each = 8 if dtype in (torch.bfloat16, torch.float16) else 32
    return rounding_step(dtype) * each * (1 + case.config["num_hidden_layers"])


def compare_structure(case: Case, call: Call, ours: "Observation", stock: "Observation") -> list[str]:
    """Errors, types, None, lengths, warnings, hooks and what is left behind."""
    problems = []
    if (ours.error is None) != (stock.error is None) or type(ours.error) is not type(stock.error):
        return [f"ours raises {_said(ours)}, stock {_said(stock)}"]
    extra = [w for w in ours.warnings if w[0] in QUIET and w not in stock.warnings]
    if "class_forward" in {change for each in case.calls for change in each.changes}:
        extra = [w for w in extra if not w[1].startswith(OF_CHECKPOINTS)]
    if extra:
        problems.append(f"ours warns: {extra[0][0]}: {extra[0][1][:200]}")
    if stock.error is None:
        if not _same_structure(ours.structure, stock.structure, hidden_logits(case, call)):
            problems.append(f"outputs are {ours.structure}, stock's {stock.structure}")
        if ours.events != stock.events:
            problems.append(f"hooks saw {ours.events}, stock's {stock.events}")
        shapes = {n: v.shape for n, v in ours.tensors.items()}
        for name, value in stock.tensors.items():
            if name in shapes and shapes[name] != value.shape:
                problems.append(f"{name} has shape {tuple(shapes[name])}, stock's {tuple(value.shape)}")
        present = {n: g is None for n, g in ours.gradients.items()}
        expected = {n: g is None for n, g in stock.gradients.items()}
        if present != expected:
            other = sorted(n for n in present | expected if present.get(n) != expected.get(n))
            problems.append(f"gradients are there or not, unlike stock's: {other[:6]}")
        problems += [
            f"the gradient of {n} is {g.dtype}, stock's {stock.gradients[n].dtype}"
            for n, g in ours.gradients.items()
            if g is not None and stock.gradients.get(n) is not None and g.dtype != stock.gradients[n].dtype
        ]
    for name, value in stock.state.items():
        if name != "buffers" and ours.state[name] != value:
            problems.append(f"{name} after the call are {_first_unlike(ours.state[name], value)}")
    buffers = ours.state["buffers"]
    if buffers.keys() != stock.state["buffers"].keys():
        problems.append(f"buffers after the call: {sorted(buffers)}, stock's {sorted(stock.state['buffers'])}")
    else:
        problems += [
            f"the buffer {n} is another" for n, b in stock.state["buffers"].items() if not torch.equal(buffers[n], b)
        ]
    return problems


def _first_unlike(ours: Any, stock: Any) -> str:
    if isinstance(ours, dict):
        names = [n for n in ours | stock if ours.get(n) != stock.get(n)]
        return ", ".join(f"{n}: {ours.get(n)!r} (stock {stock.get(n)!r})" for n in names[:4])
    unlike = [(a, b) for a, b in zip(ours, stock, strict=False) if a != b]
    return f"{unlike[0][0]} (stock {unlike[0][1]})" if unlike else f"{len(ours)} (stock {len(stock)})"


def _said(seen: "Observation") -> str:
    return "nothing" if seen.error is None else f"{type(seen.error).__name__} in {seen.stage}: {str(seen.error)[:150]}"


def hidden_logits(case: Case, call: Call) -> bool:
    """Whether this call is one for which `masked_head` may leave the logits of all tokens out."""
    asked = call.options.get("return_dict", True) is not False and not call.options.get("output_hidden_states")
    return (
        bool(case.optimize.get("masked_head"))
        and call.mode.startswith("train")
        and call.labels != "absent"
        and bool(asked)
    )


def _same_structure(ours: Any, stock: Any, hidden: bool) -> bool:
    """hidden: whether logits may be missing, and the loss be in float32, as `optimize` says of masked_head."""
    if ours == stock:
        return True
    if hidden and ours == "torch.float32" and isinstance(stock, str):  # a user's module that hands on the loss
        return True
    if not hidden or not isinstance(ours, tuple) or not isinstance(stock, tuple) or ours[0] != stock[0]:
        return False
    if isinstance(ours[1], list):
        pairs = zip(ours[1], stock[1], strict=False)
        return len(ours[1]) == len(stock[1]) and all(_same_structure(a, b, hidden) for a, b in pairs)
    without = {n: v for n, v in stock[1].items() if n not in ("logits", "prediction_logits", "loss")}
    return {n: v for n, v in ours[1].items() if n != "loss"} == without and "loss" in ours[1]


def reads_padding(case: Case, call: Call, inputs: "Inputs", value: Tensor) -> bool:
    """Whether this output is a loss that depends on hidden states at padding, which may be zeros and not stock's."""
    if value.dim() > 0:
        return False
    padded = not bool(inputs.real.all())
    over = kind(case.head) in ("QuestionAnswering", "CausalLM") and call.mode not in ("grad", "train")
    return inputs.undefined_loss(case) or (padded and over)


def _share(ours: Tensor, stocks: list[Tensor], exact: Tensor, scale: float, rounding: float) -> float:
    """The error of `ours` as a share of what is allowed, root mean square or largest, whichever is worse."""
    zero = torch.zeros_like(exact)
    size = max(scale, rms_error(exact, zero))
    mean = 2 * max(rms_error(s, exact) for s in stocks) + rounding * size
    most = 4 * max(max_error(s, exact) for s in stocks) + 4 * rounding * max(size, max_error(exact, zero))
    return max(rms_error(ours, exact) / (mean + 1e-300), max_error(ours, exact) / (most + 1e-300))


def ratio(ours: Tensor, stocks: list[Tensor], exact: Tensor, scale: float, rounding: float) -> float:
    """The error of `ours` as a share of what is allowed; at most 1 is right, infinite where it is no number and should be one."""
    exact = exact.double()
    if ours.numel() == 0:
        return 0.0
    if not ours.is_floating_point():
        return 0.0 if torch.equal(ours, stocks[0]) else float("inf")
    if not bool(exact.isfinite().all()):  # no numbers in any arithmetic: then ours are none either
        return 0.0 if torch.equal(ours.isnan() & exact.isnan(), exact.isnan()) else float("inf")
    finite = torch.stack([s.isfinite() for s in stocks]).all(0)
    if not bool(finite.all()):  # stock overflows
        ours, stocks, exact = ours[finite], [s[finite] for s in stocks], exact[finite]
        if ours.numel() == 0:
            return 0.0
    return _share(ours, stocks, exact, scale, rounding)


def compare_numbers(
    case: Case,
    call: Call,
    inputs: "Inputs",
    ours: "Observation",
    stocks: list["Observation"],
    exact: "Observation",
    dtype: torch.dtype,
) -> list[tuple[float, str]]:
    """Of each output and gradient that both have, its error as a share of what is allowed, and its name.

    stocks: what stock gave, with its products added up in one or several orders.
    """
    if exact.error is not None:
        return [(float("inf"), f"the oracle, which raises {_said(exact)},")]
    rounding = rounding_of(case, dtype)

    def chosen(seen: "Observation") -> dict[str, Tensor]:
        return {n: inputs.at_tokens(v, case) for n, v in seen.tensors.items()}

    a, bs, c = chosen(ours), [chosen(stock) for stock in stocks], chosen(exact)
    sizes = [rms_error(v, torch.zeros_like(v)) for v in c.values() if v.is_floating_point() and v.dim() and v.numel()]
    largest = max((s for s in sizes if s != float("inf")), default=0.0)
    ratios = []
    for name, value in a.items():
        if name not in bs[0] or name not in c or reads_padding(case, call, inputs, value):
            continue
        if hidden_logits(case, call) and value.dim() == 0 and not bool(c[name].isfinite()):
            continue  # a batch without labels counts 0 there, as `optimize` says
        # A scalar is a loss, at the size of logits; of gradients those that are zero in exact arithmetic have no size.
        scale = largest if value.dim() == 0 else 0.05 * largest if call.around == "func.grad" else 0.0
        ratios.append((ratio(value, [b[name] for b in bs], c[name], scale, rounding), name))
    return ratios + _gradients(ours, stocks, exact, rounding)


def _gradients(
    ours: "Observation", stocks: list["Observation"], exact: "Observation", rounding: float
) -> list[tuple[float, str]]:
    values = {n: g for n, g in exact.gradients.items() if g is not None and g.numel()}
    if not all(bool(g.isfinite().all()) for g in values.values()):  # of a loss that is no number
        return []
    whole = max((rms_error(g, torch.zeros_like(g)) for g in values.values()), default=0.0)
    ratios = []
    for name, value in values.items():
        a, bs = ours.gradients.get(name), [b for s in stocks if (b := s.gradients.get(name)) is not None]
        if a is not None and bs:
            # A gradient that is zero in exact arithmetic, as key.bias's is, has no size of its own; nor has a single number.
            scale = whole * max(0.05, value.numel() ** -0.5)
            ratios.append((ratio(a, bs, value, scale, rounding), f"gradient of {name}"))
    return ratios
