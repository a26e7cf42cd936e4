"""Which ops run their Triton kernels on a GPU and which run torch's own functions, by committed results of real devices.

An op's kernels count as verified where all its parity tests passed on that architecture, with that minor release of Triton and
with these sources (`bertfast.triton.sources`). `python -m benchmarks.gpu verified` writes the file from the lines of `make gpu`.
A candidate (`_library.candidate`), such as "linear_gelu.cheap_erf" for that module, is an entry of its own. It runs in place of
the owner of an op where it is verified and where committed lines show it faster at that op: by the median over the op's cases of
the owner's time over its own, measured in turn (`gain`). Of several candidates the one with the largest gain runs.
This module imports no Triton. It is asked once for each op, at the first call with a tensor on a GPU (`resolve`).
"""

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bertfast import _library
from bertfast.triton import sources

FILE = Path(__file__).with_name("verified.json")
# 1: run the kernels of every op, verified or not. What `allow_unverified` does for a whole process and those it starts.
ENVIRONMENT = "BERTFAST_UNVERIFIED_KERNELS"

# date, device, commit, sources; note, where something is to be known; of a candidate that was timed, gains: {op: {gain, cases,
# losing, owner}}: the median, the number of cases, {case that lost: its ratio}, and the digest of the owner beside it.
Entry = dict[str, Any]
# Folders of ops that no model calls: training takes torch's own where they are not verified, and no model is the worse for it.
_BESIDE_MODELS = frozenset({"optimizer"})
_allowed = 0
_torch_only = 0
# Every candidate (True), those that are named, of several for an op the first, or owners (False), whatever is verified.
_preferred: bool | tuple[str, ...] | None = None
_noticed: set[int] = set()


@cache
def _table() -> dict[str, dict[str, dict[str, Entry]]]:
    """{architecture: {op: {Triton's minor: entry}}}."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def triton_minor() -> str | None:
    """The installed Triton's minor release, such as "3.6", without loading it where its metadata says; None without Triton."""
    try:
        release = version("triton")
    except PackageNotFoundError:
        if importlib.util.find_spec("triton") is None:
            return None
        release = importlib.import_module("triton").__version__
    return ".".join(release.split("+")[0].split(".")[:2])


def folder_of(name: str) -> str:
    """The folder of bertfast/ops whose launchers own `bertfast::name` on a GPU."""
    return _library.owners("CUDA")[name].split(":")[0].split(".")[2]


def folders() -> list[str]:
    """The folders of bertfast/ops whose launchers own CUDA, such as "packing"."""
    return sorted({folder_of(name) for name in _library.owners("CUDA")})


def candidates() -> dict[str, list[str]]:
    """Each candidate, such as "linear_gelu.cheap_erf", and the ops that it is one for."""
    ops: dict[str, list[str]] = {}
    for name, paths in _library.candidates().items():
        for path in paths:
            ops.setdefault(_library.candidate_of(path), []).append(name)
    return ops


def verification(op: str, arch: int) -> Entry | None:
    """The result that verifies the kernels of `op`, a folder of bertfast/ops or a candidate, on `arch`, such as 90.

    With the installed Triton.

    None where there is none, where the sources are no longer those that passed, or where a candidate is not in this installation.
    """
    if _library.absence_of(op) is not None:
        return None
    entry = _table().get(str(arch), {}).get(op, {}).get(triton_minor() or "")
    return entry if entry is not None and entry["sources"] == sources.here(op, arch) else None


def verified(op: str, arch: int) -> bool:
    """Whether the kernels of `op`, a folder such as "packing" or a candidate, passed on `arch`, such as 90, as they are."""
    return verification(op, arch) is not None


def why_not(op: str, arch: int) -> str | None:
    """Why the kernels of `op` do not count as verified on `arch`, in plain words; None where they do."""
    if (absence := _library.absence_of(op)) is not None:
        return absence
    minor = triton_minor()
    if minor is None:
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "its kernels were only tried on NVIDIA GPUs"
    entries = _table().get(str(arch), {}).get(op, {})
    if minor in entries:
        if verified(op, arch):
            return None
        passed = entries[minor]
        return f"its kernels have changed since they passed on sm_{arch} ({passed['device']}, {passed['date'][:10]})"
    others = f" (they have with Triton {', '.join(sorted(entries))})" if entries else ""
    return f"its kernels have not passed their parity tests on sm_{arch} with Triton {minor}{others}"


def gain(name: str, op: str, arch: int) -> float | None:
    """How many times as fast as the owner of `op` a verified candidate was on `arch`; None where no committed line compares them.

    The median over the cases of `op`. None as well where the owner's kernels have changed since.
    """
    timed = ((verification(name, arch) or {}).get("gains") or {}).get(op)
    return timed["gain"] if timed is not None and timed["owner"] == sources.here(folder_of(op), arch) else None


def _slower(name: str, op: str, arch: int) -> str | None:
    """Why the times of a verified candidate do not speak for it at `op`; None where they do."""
    timed = ((verification(name, arch) or {}).get("gains") or {}).get(op)
    if timed is None:
        return f"no committed line compares its time with the owner's at {op}"
    faster = gain(name, op, arch)
    if faster is None:
        return f"the owner's kernels have changed since their times were compared at {op}"
    if faster > 1:
        return None
    return f"it was {faster:.2f} times as fast as the owner at {op}, the median of {timed['cases']} cases"


def why_not_candidate(name: str, arch: int, op: str | None = None) -> str | None:
    """Why a candidate, such as "linear_gelu.cheap_erf", does not run on `arch` in place of the owner of `op`; None where it does.

    op: one of the ops that it is a candidate for. By default all: None then says that it runs at one of them at least.
    """
    if _torch_only:
        return "its kernels were switched off"
    if (absence := _library.absence_of(name)) is not None:
        return absence
    if isinstance(_preferred, tuple):
        return None if name in _preferred else f"this process asked for {', '.join(_preferred)}"
    if _preferred is not None:
        return None if _preferred else "this process asked for the owners"
    if (reason := why_not(name, arch)) is not None:
        return reason
    reasons = [_slower(name, each, arch) for each in ([op] if op is not None else candidates()[name])]
    return None if None in reasons else "; ".join(filter(None, reasons))


def running_candidate(op: str, arch: int) -> str | None:
    """The candidate that runs on `arch` in place of the owner of `op`: of several the fastest, or the first of equal ones."""
    names = map(_library.candidate_of, _library.candidates().get(op, ()))
    ready = [name for name in names if why_not_candidate(name, arch, op) is None]
    if isinstance(_preferred, tuple):
        ready.sort(key=_preferred.index)
    if not ready or _preferred is not None:
        return ready[0] if ready else None
    return max(ready, key=lambda name: gain(name, op, arch) or 0.0)


def gate(arch: int) -> dict[str, str]:
    """Each op, a folder of bertfast/ops, that is not verified on `arch`, such as 90, and why; empty where all are.

    These ops run torch's own functions there. Empty as well while `allow_unverified` lets every kernel run.
    """
    if allowed():
        return {}
    if _torch_only:
        return dict.fromkeys(folders(), "its kernels were switched off")
    return {op: reason for op in folders() if (reason := why_not(op, arch)) is not None}


def is_asked_for(op: str) -> bool:
    """Whether the ops of a folder run only where somebody asked for them, as those of FP8 do: no default depends on these."""
    return op.startswith("fp8_")


def is_on_every_path(op: str) -> bool:
    """Whether models call the ops of a folder by default; the trainer's optimizer, for one, is called by no model."""
    return op not in _BESIDE_MODELS and not is_asked_for(op)


def default_gate(arch: int) -> dict[str, str]:
    """`gate` of the ops that every model's path has."""
    return {op: reason for op, reason in gate(arch).items() if is_on_every_path(op)}


def known_architectures() -> list[int]:
    """Architectures that any result speaks of."""
    return sorted(map(int, _table()))


def architectures() -> list[int]:
    """Architectures on which the kernels of every op of `default_gate` are verified with the installed Triton."""
    needed = [op for op in folders() if is_on_every_path(op)]
    return sorted(int(arch) for arch in _table() if not any(why_not(op, int(arch)) for op in needed))


def allowed() -> bool:
    """Whether kernels run that are not verified."""
    return _allowed > 0 or os.environ.get(ENVIRONMENT) == "1"


@contextmanager
def allow_unverified() -> Iterator[None]:
    """Run the kernels of every op on a GPU, verified or not: for those who test and measure kernels.

    It holds for the whole process, because backward runs on threads of its own.
    """
    global _allowed
    _allowed += 1
    _library.forget("CUDA")
    try:
        yield
    finally:
        _allowed -= 1
        _library.forget("CUDA")


@contextmanager
def prefer(candidates: bool | str | tuple[str, ...]) -> Iterator[None]:
    """Run candidates in place of owners, verified or not: for those who test and measure both.

    candidates: True for every one (of several for an op the first), False for none, or the name of one or of several (of
        several for an op the one that is named first).
    """
    global _preferred
    before, _preferred = _preferred, (candidates,) if isinstance(candidates, str) else candidates
    _library.forget("CUDA")
    try:
        yield
    finally:
        _preferred = before
        _library.forget("CUDA")


@contextmanager
def torch_only() -> Iterator[None]:
    """Run torch's own functions for every op on a GPU, in the whole process."""
    global _torch_only
    _torch_only += 1
    _library.forget("CUDA")
    try:
        yield
    finally:
        _torch_only -= 1
        _library.forget("CUDA")


def notice(arch: int) -> str | None:
    """`explain`, once in a process: None after that."""
    if arch in _noticed or (text := explain(arch)) is None:
        return None
    _noticed.add(arch)
    return text


def explain(arch: int) -> str | None:
    """What to say of the ops that run torch's own functions on `arch`; None where none do."""
    if not (reasons := default_gate(arch)):
        return None
    if _torch_only:
        return f"bertfast: every op runs torch's own functions on this GPU (sm_{arch}): its kernels were switched off"
    by_reason: dict[str, list[str]] = {}
    for op, reason in reasons.items():
        by_reason.setdefault(reason, []).append(op)
    text = "; ".join(f"{', '.join(ops)} ({reason})" for reason, ops in by_reason.items())
    return (
        f"bertfast: on this GPU (sm_{arch}) some ops run torch's own functions, which are slower than kernels: {text}. "
        "`make gpu` in bertfast's checkout verifies them; `bertfast doctor` lists every op"
    )


def devices() -> tuple[int, ...]:
    """The architectures of the GPUs that this process sees, by index."""
    capabilities = (torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    return tuple(10 * major + minor for major, minor in capabilities)


def _chosen(name: str, arch: int) -> Callable[..., Any]:
    """What runs `bertfast::name` on `arch`."""
    candidate = running_candidate(name, arch)
    if candidate is not None:
        return _library.candidate_function(name, candidate)
    return _library.meaning(name) if folder_of(name) in gate(arch) else _library.owner(name, "CUDA")


def resolve(name: str) -> Callable[..., Any]:
    """What runs `bertfast::name` on the GPUs of this process: a candidate, the owner where it is verified, else its reference.

    Where the GPUs do not agree, the device of a call's first tensor on a GPU decides.
    """
    by_index = devices()
    chosen = {arch: _chosen(name, arch) for arch in sorted(set(by_index))}
    for arch, function in chosen.items():
        if function is _library.meaning(name) and (text := notice(arch)) is not None:
            warnings.warn(text, UserWarning, stacklevel=3)
    distinct = set(chosen.values()) or {_library.owner(name, "CUDA")}
    if len(distinct) == 1:
        return distinct.pop()

    def by_device(*args: Any) -> Any:
        index = next(a.device.index for a in args if isinstance(a, torch.Tensor) and a.device.index is not None)
        return chosen[by_index[index]](*args)

    return by_device
