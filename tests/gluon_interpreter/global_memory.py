"""Who wrote what of global memory in a launch.

Programs do not wait for one another, so none may write or read what another one wrote, except with atomics: a program that has
made one is taken to know what it does. What a TMA store wrote is complete at the end of the kernel alone.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import scheduler
from .faults import Fault

if TYPE_CHECKING:
    from .scheduler import Program


class Owners:
    """For each element of each tensor: the program that wrote it, from 1 on, negative where by a TMA store; 0 for none."""

    def __init__(self) -> None:
        self._writers: dict[tuple[int, int], Tensor] = {}

    def read(self, program: "Program", view: Tensor, places: Any = slice(None)) -> None:
        """Elements `places` of `view` are read."""
        writers = self._of(view)[places]
        foreign = (writers < 0) if program.uses_atomics else (writers != 0) & (writers != program.number)
        if foreign.any():
            self._refuse(program, "reads", writers[foreign])

    def write(self, program: "Program", view: Tensor, places: Any = slice(None), by_copy: bool = False) -> None:
        """Elements `places` of `view` are written, by a TMA store or by the program itself."""
        owners = self._of(view)
        writers = owners[places]
        foreign = (writers < 0) if program.uses_atomics else (writers != 0) & (writers != program.number)
        if foreign.any():
            self._refuse(program, "writes", writers[foreign])
        owners[places] = -program.number if by_copy else program.number

    def _of(self, view: Tensor) -> Tensor:
        storage = view.untyped_storage()
        key = (storage.data_ptr(), view.element_size())
        if key not in self._writers:
            self._writers[key] = torch.zeros(storage.nbytes() // view.element_size(), dtype=torch.int32)
        return self._writers[key].as_strided(view.shape, view.stride(), view.storage_offset())

    def _refuse(self, program: "Program", verb: str, writers: Tensor) -> None:
        writer = int(writers.flatten()[0])
        how = "a TMA store of" if writer < 0 else ""
        raise Fault(
            "race",
            f"program {program.name} {verb} global memory at {scheduler.place()} that {how} program {abs(writer) - 1} wrote",
        )
