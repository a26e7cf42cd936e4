"""The functions of a kernel as Python functions over this interpreter: the same code with other globals."""

import builtins
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from triton.experimental.gluon import language as gl

from . import language
from .scheduler import KERNEL

_JITTED = type(gl.cdiv)


def _names(code: CodeType) -> set[str]:
    """Global names that a function reads, those of its inner functions included."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


class Translation:
    """Of one launch: what each object that a kernel names stands for."""

    def __init__(self) -> None:
        self._functions: dict[Any, FunctionType] = {}
        self._emulated = {
            id(getattr(module, name)): function
            for module, functions in language.FUNCTIONS.items()
            for name, function in functions.items()
            if hasattr(module, name)
        }

    def of(self, thing: Any) -> Any:
        """`thing` as the kernel has to see it."""
        if id(thing) in self._emulated:
            return self._emulated[id(thing)]
        if isinstance(thing, gl.constexpr):
            return self.of(thing.value)
        if isinstance(thing, _JITTED):
            return self.function(thing)
        if isinstance(thing, ModuleType):
            return _Module(self, thing)
        if isinstance(thing, FunctionType) and (thing.__module__ or "").startswith("triton."):
            return _missing(thing)
        return thing

    def function(self, jitted: Any) -> FunctionType:
        """A jitted function, whose helpers are translated with it."""
        made = self._functions.get(jitted)
        if made is None:
            original = jitted.fn
            names: dict[str, Any] = {"__builtins__": builtins, "range": language.integer_range, KERNEL: True}
            closure = tuple(CellType(self.of(cell.cell_contents)) for cell in original.__closure__ or ())
            defaults = tuple(self.of(value) for value in original.__defaults__ or ())
            made = FunctionType(original.__code__, names, original.__name__, defaults, closure)
            made.__kwdefaults__ = {name: self.of(value) for name, value in (original.__kwdefaults__ or {}).items()}
            self._functions[jitted] = made
            for name in _names(original.__code__):
                if name in original.__globals__:
                    names[name] = self.of(original.__globals__[name])
        return made

    def reachable(self, jitted: Any) -> list[FunctionType]:
        """The Python functions that a kernel consists of, as they were written."""
        self.function(jitted)
        return [each.fn for each in self._functions]


class _Module:
    def __init__(self, translation: Translation, module: ModuleType) -> None:
        self._translation, self._module = translation, module

    def __getattr__(self, name: str) -> Any:
        return self._translation.of(getattr(self._module, name))


def _missing(function: Callable) -> Callable:
    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the interpreter of Gluon kernels has no {function.__module__}.{function.__name__}")

    return refuse
