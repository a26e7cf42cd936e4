"""Compiles recorded launches for an architecture without its GPU and reads registers, spills and instructions.

Needs Triton's bundled cuobjdump and nvdisasm, no driver, and TRITON_INTERPRET unset when the kernels were imported.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bertfast.triton.launch import Launch

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SASS = ("HGMMA", "HMMA", "UTCHMMA", "UTMALDG", "UTMASTG", "LDGSTS", "LDSM", "LDG", "STG", "LDL", "STL", "MUFU")
_PTX = ("wgmma.mma_async", "mma.sync", "tcgen05.mma", "cp.async.bulk.tensor", "cp.async.cg", "mbarrier", "setmaxnreg")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers a thread, stack and shared bytes, warps; instruction counts.

    wide: the share of global loads and stores in the SASS that move 16 bytes a thread.
    """

    registers: int
    stack: int
    shared: int
    warps: int
    wide: float
    sass: dict[str, int] = field(default_factory=dict)
    ptx: dict[str, int] = field(default_factory=dict)

    @property
    def spills(self) -> bool:
        return self.sass.get("LDL", 0) + self.sass.get("STL", 0) > 0


def compile_launch(launch: Launch, arch: int) -> Any:
    """The Triton kernel of one recorded launch, compiled for `arch` (80, 90, 100)."""
    names = launch.kernel.arg_names
    types, constants = dict(launch.signature), dict(launch.constants)
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in launch.divisible_by_16
    }
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(compiled: Any) -> Resources:
    """Read a compiled kernel's resources out of its cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()

        def tool(name: str, flag: str) -> str:
            return subprocess.run(
                [str(_BIN / name), flag, cubin.name], capture_output=True, text=True, check=True
            ).stdout

        usage = dict(re.findall(r"(REG|STACK):(\d+)", tool("cuobjdump", "-res-usage")))
        sass = re.findall(
            r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9.]*)", tool("nvdisasm", "-c"), re.MULTILINE
        )
    names = [name.split(".")[0] for name in sass]
    accesses = [name for name in sass if name.split(".")[0] in ("LDG", "STG", "LDGSTS")]
    wide = sum("128" in name for name in accesses) / len(accesses) if accesses else 1.0
    ptx = compiled.asm["ptx"]
    return Resources(
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        wide=wide,
        sass={name: n for name in _SASS if (n := names.count(name))},
        ptx={name: n for name in _PTX if (n := ptx.count(name))},
    )
