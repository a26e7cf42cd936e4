"""What an op's GPU kernels are made of, as one digest: it says whether what passed on a GPU is what is here.

Counted are the `triton*.py` files of the op's folder, the modules of ops and of `bertfast.triton` that they import, and the tiles
that an architecture takes from the launch tables beside them. A candidate, "FOLDER.MODULE", is counted from its own module on, and
that is none of the op's unless the op imports it. One whose module is named `cutlass` is made of csrc/cuda too, to the byte.
Comments, docstrings, blank lines and the reasons in launch tables are not counted: they change no kernel. References, schemas and
what launches or checks kernels are not counted either: they are tested on every machine. Nothing here loads Triton.
"""

import ast
import hashlib
import io
import json
import tokenize
from functools import cache
from pathlib import Path

from bertfast import _cuda

PACKAGE = Path(__file__).parents[1]
# Of bertfast.triton: the host's part, which no kernel is compiled from.
HOST = frozenset(("aot", "interpreter", "launch", "private", "repeats", "sources", "tables", "verified"))
NATIVE = "cutlass"  # the module of candidates whose kernels lie in csrc/cuda
# Of an op's folder: what the op means, and who owns it.
MEANING = frozenset(("op", "reference", "tied", "chunked"))


@cache
def _parsed(text: str) -> tuple[str, frozenset[str]]:
    """A module's code (see `code_of`) and the dotted names below `bertfast` that it imports, those of members included."""
    tree = ast.parse(text)
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bertfast."):
            names |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
    return _code(text, tree), frozenset(names)


def code_of(text: str) -> str:
    """Python source without comments, docstrings and blank lines; the same on every Python."""
    return _parsed(text)[0]


def _code(text: str, tree: ast.Module) -> str:
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(stripped for line in lines if (stripped := line.rstrip()))


def _counted(module: str, package: Path) -> Path | None:
    """The file of a module that kernels are made of, or None."""
    parts = module.split(".")[1:]
    path = package.joinpath(*parts).with_suffix(".py")
    below_op = len(parts) == 3 and parts[0] == "ops" and parts[2] not in MEANING
    shared = len(parts) == 2 and parts[0] == "triton" and parts[1] not in HOST
    return path if (below_op or shared) and path.exists() else None


def files(op: str, package: Path = PACKAGE) -> list[Path]:
    """The Python files that the kernels of `op`, a folder of bertfast/ops, are made of; none where it has no kernels."""
    counted: set[Path] = set()
    folder, _, module = op.partition(".")
    waiting = sorted((package / "ops" / folder).glob(f"{module}.py" if module else "triton*.py"))
    while waiting:
        path = waiting.pop()
        if path not in counted:
            counted.add(path)
            imported = (_counted(name, package) for name in _parsed(path.read_text(encoding="utf-8"))[1])
            waiting += [other for other in imported if other is not None]
    return sorted(counted)


def tiles(file: Path, arch: int) -> str:
    """What the launch tables of a file hold for `arch`, as text: keys and tiles of entries up to it, in the order of the file."""
    rows = []
    for table, content in json.loads(file.read_text(encoding="utf-8")).items():
        for entry in content["entries"]:
            if entry["arch"] <= arch:
                key = {name: value for name, value in entry.items() if name not in ("reason", "measured")}
                rows.append([table, key])
    return json.dumps(rows, sort_keys=True)


def _tables(paths: list[Path], package: Path) -> list[Path]:
    """Files of launch tables beside these sources."""
    of_ops = [path for path in paths if path.parent.parent.name == "ops"]
    beside = {path.with_name("launch.json") for path in of_ops} | {path.with_suffix(".json") for path in of_ops}
    if package / "triton" / "rows.py" in paths:
        beside.add(package / "triton" / "rows.json")
    return sorted(path for path in beside if path.exists())


def _native(package: Path) -> str:
    """What stands for csrc/cuda and CUTLASS's version: of the checkout, else what an installed library was built from."""
    script = package.parent.joinpath("csrc", "cuda", "build.py")
    return _cuda.sources(script) or _cuda.built_from() or ""


def digest(op: str, arch: int, package: Path = PACKAGE) -> str:
    """Twelve digits that stand for the kernels of `op`, a folder such as "packing" or a candidate, on `arch`, such as 90."""
    total = hashlib.sha256()
    paths = files(op, package)
    for path in paths:
        total.update(f"{path.relative_to(package).as_posix()}\n{code_of(path.read_text(encoding='utf-8'))}\n".encode())
    for path in _tables(paths, package):
        total.update(f"{path.relative_to(package).as_posix()}\n{tiles(path, arch)}\n".encode())
    if op.partition(".")[2] == NATIVE:
        total.update(_native(package).encode())
    return total.hexdigest()[:12]


@cache
def here(op: str, arch: int) -> str:
    """`digest` of the installed package, read once in a process."""
    return digest(op, arch)
