"""Every case of benchmarks/gpu/cases, and how one of them is called."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import bertfast.ops  # noqa: F401  defines the ops
from benchmarks.gpu import cases
from benchmarks.gpu.case import Case
from bertfast import _library


def all_cases(only: str = "") -> list[Case]:
    """The cases of every module, in the order of their files, whose name contains `only`."""
    modules = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
    every = [case for name in modules for case in importlib.import_module(f"{cases.__name__}.{name}").CASES]
    return [case for case in every if only in case.name]


def function(case: Case) -> Callable[..., Any]:
    """What a case runs: its own function, or the op's CUDA owner. The launcher itself, without the dispatcher."""
    return case.run or _library.owner(case.op, "CUDA")


def candidate(case: Case) -> str | None:
    """The candidate that a case runs, such as "linear_gelu.cheap_erf"; None where it runs none."""
    names = map(_library.candidate_of, _library.candidates().get(case.op, ()))
    return next((name for name in names if case.run is _library.candidate_function(case.op, name)), None)


def absence(case: Case) -> str | None:
    """Why the candidate that a case runs is not in this installation; None where it is, and for owners."""
    name = candidate(case)
    return None if name is None else _library.absence_of(name)
