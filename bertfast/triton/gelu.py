"""gelu(v) and its derivative inside a kernel, in float32.

    erf form:  gelu = v (1 + erf(v / sqrt 2)) / 2,   gelu' = (1 + erf(v / sqrt 2)) / 2 + v exp(-v v / 2) / sqrt(2 pi)
    tanh form: gelu = v s,   gelu' = s + v s (1 - s) z',   s = 1 / (1 + exp(-z)),   z = 2 sqrt(2 / pi) (v + 0.044715 v^3)

The second uses (1 + tanh(z / 2)) / 2 = s: one exponential.
"""

import math

import triton
import triton.language as tl

_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_DENSITY_AT_0 = tl.constexpr(1 / math.sqrt(2 * math.pi))
_TWO_SQRT_2_PI = tl.constexpr(2 * math.sqrt(2 / math.pi))
_CUBIC = tl.constexpr(0.044715)
_THREE_CUBIC = tl.constexpr(3 * 0.044715)


@triton.jit
def _sigmoid_of_tanh_form(v):
    """(s, s (1 - s)), from exp(-|z|) so that neither cancels nor overflows."""
    z = _TWO_SQRT_2_PI * v * (1.0 + _CUBIC * v * v)
    small = tl.exp(-tl.abs(z))
    part = 1.0 / (1.0 + small)
    return tl.where(z < 0, small * part, part), small * part * part


@triton.jit
def gelu(v, TANH: tl.constexpr):
    if TANH:
        s, _ = _sigmoid_of_tanh_form(v)
        y = v * s
    else:
        y = 0.5 * v * (1.0 + tl.erf(v * _SQRT_HALF))
    return y


@triton.jit
def gelu_gradient(v, TANH: tl.constexpr):
    if TANH:
        s, s_slope = _sigmoid_of_tanh_form(v)
        slope = s + v * s_slope * (_TWO_SQRT_2_PI * (1.0 + _THREE_CUBIC * v * v))
    else:
        slope = 0.5 * (1.0 + tl.erf(v * _SQRT_HALF)) + v * tl.exp(-0.5 * v * v) * _DENSITY_AT_0
    return slope
