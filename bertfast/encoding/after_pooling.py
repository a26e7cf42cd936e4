"""What a checkpoint does to pooled vectors: the modules that its files for sentence-transformers list behind the Pooling.

Each has a folder: config.json, and model.safetensors where it has weights. Whatever the model's precision, they compute in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast.encoding.checkpoint import ELSEWHERE, RecipeError, read_json, without_safetensors
from bertfast.nn import prepack

# A product of fewer rows adds in another order (csrc/cpu/packed_linear_kernels.cpp), so that a batch of fewer would have other bits
# than a larger one.
FEWEST_ROWS_OF_EQUAL_SUMS = 32
_BLOCK_ROWS = FEWEST_ROWS_OF_EQUAL_SUMS
# Those that sentence-transformers makes of their names alone, without arguments, and that look at each number by itself.
_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.ReLU6, nn.Mish,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Tanhshrink,
)  # fmt: skip
_BY_NAME = {f"{place}.{kind.__name__}": kind for kind in _ACTIVATIONS for place in (kind.__module__, "torch.nn")}
_DENSE = {"in_features", "out_features", "bias", "activation_function", "use_residual"}
_VECTORS = "sentence_embedding"  # sentence-transformers' name of the pooled vectors


@dataclass(frozen=True)
class Dense:
    """activation(x W^T + b), + x or + x R^T where it has a residual.

    Attributes:
        folder: where its weights are.
        inputs, outputs: numbers of a vector.
        bias: whether there is b.
        activation: its class in torch, as "torch.nn.modules.activation.Tanh".
        residual: whether x is added; by R where the sizes differ.
    """

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str
    residual: bool


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation of vectors of `size` numbers, with torch's default epsilon; its weights are in `folder`."""

    folder: Path
    size: int


@dataclass(frozen=True)
class Normalize:
    """Division by the Euclidean length."""


Module = Dense | LayerNorm | Normalize


def read(kind: str, folder: Path) -> list[Module]:
    """The settings of a module of sentence-transformers, by its class's name; none of one that does nothing in inference.

    Raises:
        RecipeError: there is no such module here, its file is missing or damaged, or says what is not computed here.
    """
    path = folder / "config.json"
    config = read_json(path, dict)
    if kind not in ("Normalize", "Dropout") and config is None:
        raise RecipeError(f"{path} is missing, and modules.json names it: copy the checkpoint again")
    config = dict(config or {})
    for key in ("module_input_name", "module_output_name"):
        name = config.pop(key, None)
        if name not in (None, _VECTORS):
            raise RecipeError(f"{path}: {key} is {name!r}, and the pooled vectors alone are read here: {ELSEWHERE}")
    known = {"Dense": _DENSE, "LayerNorm": {"dimension"}, "Normalize": set(), "Dropout": {"dropout"}}[kind]
    for key, value in config.items():
        if key not in known and value not in (None, False):
            raise RecipeError(f"{path}: {key} is {value!r}, which is not computed here: {ELSEWHERE}")
    if kind == "Dense":
        return [_dense(folder, path, config)]
    if kind == "LayerNorm":
        return [LayerNorm(folder, _size(path, config, "dimension"))]
    return [Normalize()] if kind == "Normalize" else []


def _dense(folder: Path, path: Path, config: dict[str, Any]) -> Dense:
    activation = config.get("activation_function", "torch.nn.Tanh")
    if activation not in _BY_NAME:
        names = ", ".join(kind.__name__ for kind in _ACTIVATIONS)
        raise RecipeError(
            f"{path}: activation_function is {activation!r}, and torch.nn's {names} are known: {ELSEWHERE}"
        )
    inputs, outputs = (_size(path, config, key) for key in ("in_features", "out_features"))
    return Dense(folder, inputs, outputs, bool(config.get("bias", True)), activation, bool(config.get("use_residual")))


def _size(path: Path, config: dict[str, Any], key: str) -> int:
    size = config.get(key)
    if type(size) is not int or size < 1:
        raise RecipeError(f"{path}: {key} is {size!r}, and a positive integer is expected: copy the checkpoint again")
    return size


class _Dense(nn.Module):
    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.linear = nn.Linear(dense.inputs, dense.outputs, dense.bias)
        self.activation = _BY_NAME[dense.activation]()
        self.adds = dense.residual
        self.residual = (
            nn.Linear(dense.inputs, dense.outputs, bias=False) if self.adds and dense.inputs != dense.outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        made = self.activation(_product(x, self.linear))
        if not self.adds:
            return made
        return made + (x if self.residual is None else _product(x, self.residual))


def _product(x: Tensor, linear: nn.Linear) -> Tensor:
    return prepack.fused_linear(x, (linear,)) if x.device.type == "cpu" else linear(x)


class _LayerNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class _Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class _Shortened(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.size]


class AfterPooling(nn.Module):
    """Pooled vectors [B, P] float32 to embeddings [B, E] float32; on a CPU a row's bits depend on no other row.

    Args:
        modules: in their order.
        truncate_dim: how many numbers of what they make are kept, the first ones; all where None.
        normalize: whether what is kept is divided by its length.
        pooled: P, numbers of a pooled vector.

    Attributes:
        size: E.

    Raises:
        RecipeError: weights are missing or damaged, or are no safetensors; or the sizes do not fit each other.
    """

    def __init__(self, modules: Sequence[Module], truncate_dim: int | None, normalize: bool, pooled: int) -> None:
        super().__init__()
        self.size = pooled
        made: list[nn.Module] = []
        for module in modules:
            made.append(self._made(module))
        if truncate_dim is not None:
            made.append(_Shortened(truncate_dim))
            self.size = min(self.size, truncate_dim)
        self.steps = nn.Sequential(*made, *([_Normalize()] if normalize else [])).eval().requires_grad_(False)
        self._in_blocks = any(isinstance(module, Dense) for module in modules)

    def _made(self, module: Module) -> nn.Module:
        if isinstance(module, Normalize):
            return _Normalize()
        inputs, outputs = (module.inputs, module.outputs) if isinstance(module, Dense) else (module.size, module.size)
        if inputs != self.size:
            raise RecipeError(
                f"{module.folder / 'config.json'} is for vectors of {inputs} numbers, and what comes before makes {self.size}: "
                "leave the pooling as the checkpoint has it, or copy the checkpoint again"
            )
        self.size = outputs
        return _loaded(_Dense(module) if isinstance(module, Dense) else _LayerNorm(module.size), module.folder)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, E] of [B, P], both float32."""
        if not self._in_blocks or pooled.device.type != "cpu":
            return self.steps(pooled)
        # Blocks of one size: the product adds alike in each, and no number stands in the rest behind an activation's full vectors,
        # which torch computes otherwise.
        filled = F.pad(pooled, (0, 0, 0, -len(pooled) % _BLOCK_ROWS))
        return torch.cat([self.steps(block) for block in filled.split(_BLOCK_ROWS)])[: len(pooled)]


def _loaded(module: nn.Module, folder: Path) -> nn.Module:
    """The module with the weights of its folder."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.is_file():
        raise without_safetensors(path)
    try:
        stored = load_file(path)
    except Exception as error:  # safetensors has a kind of its own
        raise RecipeError(f"{path} cannot be read ({error}): copy the checkpoint again") from error
    if wrong := _difference(stored, module.state_dict()):
        raise RecipeError(f"{path} cannot be read as config.json beside it says ({wrong}): copy the checkpoint again")
    module.load_state_dict(stored)
    return module


def _difference(stored: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """The first of the weights that differ in name or shape, in words; empty where none does."""
    for name in sorted({*stored, *expected}):
        if name not in expected:
            return f"{name} is there, and config.json says that there is none"
        if name not in stored:
            return f"{name} is missing"
        shape, said = list(stored[name].shape), list(expected[name].shape)
        if shape != said:
            return f"{name} is {shape}, and config.json says {said}"
    return ""
