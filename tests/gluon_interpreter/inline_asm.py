"""The PTX that kernels write themselves: an instruction for each of these, of float32 unless it says otherwise."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _flushed(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`.ftz`: subnormal numbers are zero, before and after."""

    def flush(x: Tensor) -> Tensor:
        return torch.where(x.abs() < torch.finfo(torch.float32).tiny, x * 0, x)

    return lambda x: flush(function(flush(x)))


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "rcp.approx.ftz.f32": _flushed(torch.reciprocal),
    "ex2.approx.ftz.f32": _flushed(torch.exp2),
    "lg2.approx.ftz.f32": _flushed(torch.log2),
    "rsqrt.approx.ftz.f32": _flushed(torch.rsqrt),
    "sqrt.approx.ftz.f32": _flushed(torch.sqrt),
    "tanh.approx.f32": torch.tanh,
}
_PAIR_TO_8_BITS = {"cvt.rn.satfinite.e4m3x2.f32": torch.float8_e4m3fn, "cvt.rn.satfinite.e5m2x2.f32": torch.float8_e5m2}


def evaluate(asm: str, arguments: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """What `asm` makes of its arguments, element by element.

    Raises:
        NotImplementedError: for PTX that is none of the above, once, or several times over an element's pack.
    """
    text = " ".join(asm.split()).strip()
    opcodes = set(re.findall(r"(?<![\w.%])[a-z][a-z0-9]*(?:\.[a-z0-9]+)+(?=\s)", text)) - {"mov.b32", ".reg"}
    if len(opcodes) == 1 and len(arguments) == 1 and len(dtypes) == 1:
        (opcode,) = opcodes
        if opcode in _UNARY:
            return [_UNARY[opcode](arguments[0].float()).to(dtypes[0])]
        if opcode in _PAIR_TO_8_BITS and dtypes[0].itemsize == 1:
            kind = _PAIR_TO_8_BITS[opcode]
            largest = torch.finfo(kind).max
            bits = arguments[0].float().clamp(-largest, largest).to(kind)
            return [bits.view(dtypes[0])]
    raise NotImplementedError(f"inline assembly that the interpreter does not know: {text}")
