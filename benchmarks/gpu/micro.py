"""The stage micro: every case against its peers, as shares of what this device was measured to copy and multiply.

A candidate's line holds what a verdict needs (`verified.gains`): its owner's time in turn with its own, and both digests.
"""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu import collect, measure, results
from benchmarks.gpu.case import Arguments, Case, Ceilings
from benchmarks.gpu.verified import OWNER
from bertfast import _library
from bertfast.bench.protocol import Spread
from bertfast.triton import sources, verified

STAGE_SECONDS = 420  # no case is begun after this
ORACLE_BYTES = 64 << 20  # cases up to this size are compared with the reference in float64


def error(case: Case, arguments: Arguments) -> float | None:
    """The largest difference of any floating-point output from the reference in float64; None for a large case."""
    if case.bytes > ORACLE_BYTES or (case.run is not None and collect.candidate(case) is None):
        return None
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    got = measure.tensors(collect.function(case)(*arguments))
    expected = measure.tensors(getattr(torch.ops.bertfast_reference, case.op)(*wide))
    both = [(a, b) for a, b in zip(got, expected, strict=True) if a.is_floating_point()]
    return max((float((a.double() - b.double()).abs().max()) for a, b in both if a.numel()), default=0.0)


def describe(case: Case, spread: Spread, ceilings: Ceilings) -> results.Line:
    """What a time means: rates, and the share of the floor that the measured ceilings set."""
    return {
        "p20": spread.p20,
        "p50": spread.p50,
        "p80": spread.p80,
        "gbps": case.bytes / spread.p50 / 1e9,
        "tflops": case.flops / spread.p50 / 1e12,
        "share_of_ceiling": ceilings.floor(case) / spread.p50,
        "predicted": case.predicted_seconds,
        "share_of_prediction": case.predicted_seconds / spread.p50,
        "predicted_us": case.predicted_us,
    }


def about(case: Case, arch: int) -> results.Line:
    """What a line says of its case before anything ran: what it is, and the digest of the kernels that it runs on `arch`."""
    line = {"op": case.op, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch.")}
    owner = sources.here(verified.folder_of(case.op), arch)
    name = collect.candidate(case)
    if name is not None:
        return line | {"candidate": name, "sources": sources.here(name, arch), "owner_sources": owner}
    return line | {"sources": owner}


def peers_of(case: Case) -> dict[str, Any]:
    """A case's peers; a candidate's owner is always among them."""
    if collect.candidate(case) is None or OWNER in case.peers:
        return case.peers
    owner = _library.owner(case.op, "CUDA")
    return {OWNER: lambda arguments: lambda: owner(*arguments), **case.peers}


def run_case(
    case: Case,
    device: torch.device,
    clock: measure.Clock,
    ceilings: Ceilings,
    synchronize: measure.Thunk,
    stage: str = "micro",
    budget: float = 0.5,
) -> results.Line:
    """One line of a stage; a case that fails is a line with ok=False. budget: seconds for all sides together, see `take_turns`."""
    what = about(case, results.environment()["arch"])
    if (reason := collect.absence(case)) is not None:
        return results.line(stage, case.name, ok=None, error=reason, **what)
    try:
        arguments = case.make(device)
        function = collect.function(case)
        thunks: dict[str, measure.Thunk] = {"owner": lambda: function(*arguments)}
        peers: dict[str, Any] = {}
        for name, build in peers_of(case).items():
            try:
                thunks[name] = build(arguments)
            except Exception as problem:  # a peer that this torch does not have
                peers[name] = {"error": measure.explain(problem)}
        spreads = measure.take_turns(thunks, clock, budget)
        own = spreads.pop("owner")
        if isinstance(own, str):
            return results.line(stage, case.name, ok=False, error=own, **what)
        for name, spread in spreads.items():
            if isinstance(spread, str):
                peers[name] = {"error": spread}
            else:
                peers[name] = {"p20": spread.p20, "p50": spread.p50, "p80": spread.p80, "ratio": spread.p50 / own.p50}
        more = describe(case, own, ceilings) | {"peers": peers, "clocks": results.clocks()}
        more["host_us"] = 1e6 * measure.host_seconds(thunks["owner"], synchronize)
        more["error"] = error(case, arguments)
        return results.line(stage, case.name, ok=True, **what, **more)
    except Exception as problem:
        return results.line(stage, case.name, ok=False, error=measure.explain(problem), **what)


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    deadline, clock = measure.Deadline(STAGE_SECONDS), measure.CudaClock()
    ceilings = measure.ceilings(clock)
    shown = {"gbps": ceilings.copy / 1e9, "tflops": ceilings.matrix / 1e12, "tflops32": ceilings.matrix_float32 / 1e12}
    yield results.line("micro", "ceilings", ok=True, clocks=results.clocks(), **shown)
    for case in collect.all_cases(only):
        if case.name in done:
            continue
        if deadline.passed:
            yield results.line("micro", case.name, ok=None, error=deadline.text)
            continue
        yield run_case(case, torch.device("cuda", 0), clock, ceilings, torch.cuda.synchronize)
        torch.cuda.empty_cache()
