"""The cells of `cells.json`: which versions stand together in one environment."""

import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("cells.json")
COLUMNS = ("torch", "transformers", "numpy", "triton")  # what the table shows of an environment


@dataclass(frozen=True)
class Cell:
    """One environment: a Python "3.11", and packages with a version, a specifier such as "<2.4", or None for the newest."""

    name: str
    about: str
    python: str
    packages: dict[str, str | None]

    def requirements(self) -> list[str]:
        """What pip is asked for, torch first. Triton without a version is left to torch, which brings its own."""
        return [
            requirement(name, version)
            for name, version in self.packages.items()
            if name != "triton" or version is not None
        ]


def requirement(name: str, version: str | None) -> str:
    """A package as pip wants it: "2.0.2" is that version, "<2.4" stays a range, None is any."""
    if version is None:
        return name
    return f"{name}{version}" if version[0] in "<>=!~" else f"{name}=={version}"


def read(path: Path = FILE) -> list[Cell]:
    """All cells, each with the packages of `always`. Raises ValueError where two have one name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = [
        Cell(one["name"], one["about"], one["python"], {**one["packages"], **content["always"]})
        for one in content["cells"]
    ]
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: a name stands twice among {', '.join(names)}")
    return cells


def select(cells: list[Cell], names: list[str]) -> list[Cell]:
    """The cells of these names, all where there are none. Raises ValueError on an unknown name, with those that exist."""
    unknown = sorted(set(names) - {cell.name for cell in cells})
    if unknown:
        raise ValueError(f"no cell {', '.join(unknown)}; there are {', '.join(cell.name for cell in cells)}")
    return [cell for cell in cells if not names or cell.name in names]
