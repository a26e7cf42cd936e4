"""GELU and its gradient inside a Gluon kernel, for results of 16 bits: the erf form by `cheap_erf`'s numbers, and the tanh form.

Both take one exponential and one reciprocal of the special function units an element: 13 instructions forward, 15 backward.
"""

import math

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from bertfast.ops.linear_gelu.cheap_erf import COEFFICIENTS, P

_P = gl.constexpr(P)
_C1, _C2, _C3, _C4 = (gl.constexpr(c) for c in COEFFICIENTS)
_EXPONENT = gl.constexpr(-0.5 * math.log2(math.e))
_DENSITY_AT_0 = gl.constexpr(1 / math.sqrt(2 * math.pi))
_CUBIC, _THREE_CUBIC = gl.constexpr(0.044715), gl.constexpr(3 * 0.044715)
_TWO_SQRT_2_PI = gl.constexpr(2 * math.sqrt(2 / math.pi))
_TANH_EXPONENT = gl.constexpr(-2 * math.sqrt(2 / math.pi) * math.log2(math.e))


@gluon.jit
def reciprocal(x):
    """1 / x in one instruction, of a relative error of 2^-23."""
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def exp2(x):
    """2^x in one instruction, of a relative error of 2^-22; subnormal results are 0."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _tail(x):
    """(q / e, e) with e = exp(-x x / 2): q = erfc(|x| / sqrt 2) / 2 is their product."""
    t = reciprocal(gl.abs(x) * _P + 1.0)
    return t * (((_C4 * t + _C3) * t + _C2) * t + _C1), exp2(x * x * _EXPONENT)


@gluon.jit
def _sigmoid_of_tanh_form(x):
    """(s, s (1 - s)) with s = (1 + tanh(..)) / 2, from exp(-|z|), so that neither cancels nor overflows."""
    z = x * (1.0 + _CUBIC * x * x)
    small = exp2(gl.abs(z) * _TANH_EXPONENT)
    part = reciprocal(1.0 + small)
    return gl.where(z < 0, small * part, part), small * part * part


@gluon.jit
def gelu(x, TANH: gl.constexpr):
    if TANH:
        s, _ = _sigmoid_of_tanh_form(x)
        y = x * s
    else:
        scaled, e = _tail(x)
        q = e * scaled
        y = x * gl.where(x < 0, q, 1.0 - q)
    return y


@gluon.jit
def gelu_gradient(x, TANH: gl.constexpr):
    if TANH:
        s, s_slope = _sigmoid_of_tanh_form(x)
        slope = s + x * s_slope * (_TWO_SQRT_2_PI * (1.0 + _THREE_CUBIC * x * x))
    else:
        scaled, e = _tail(x)
        half = e * (gl.abs(x) * _DENSITY_AT_0 - scaled) + 0.5
        slope = 0.5 + gl.where(x < 0, -half, half)
    return slope
