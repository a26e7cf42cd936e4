"""Compiles recorded launches for an architecture without its GPU and reads registers, spills and instructions.

Needs Triton's bundled cuobjdump and nvdisasm, no driver, and TRITON_INTERPRET unset when the kernels were imported.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import Any

import triton

from bertfast.triton import private
from bertfast.triton.launch import FP_FUSION, Launch

_SASS = (
    "HGMMA",
    "QGMMA",
    "HMMA",
    "UTCHMMA",
    "UTMALDG",
    "UTMASTG",
    "LDGSTS",
    "LDSM",
    "LDG",
    "STG",
    "LDL",
    "STL",
    "MUFU",
)
_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_PTX = ("wgmma.mma_async", "mma.sync", "tcgen05.mma", "cp.async.bulk.tensor", "cp.async.cg", "mbarrier", "setmaxnreg")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers a thread, stack and shared bytes, warps; instruction counts.

    moved: bytes a thread of the global loads and stores in the SASS, each counted once whether or not it is in a loop;
    wide: the share of them in accesses of 16 bytes. Scalars and masks of a byte so weigh what they are.
    waits: for wgmma to finish. As many as there are HGMMA: ptxas has put them one after another, and its warning was not shown.
    """

    registers: int
    stack: int
    shared: int
    warps: int
    moved: int
    wide: float
    waits: int = 0
    sass: dict[str, int] = field(default_factory=dict)
    ptx: dict[str, int] = field(default_factory=dict)

    @property
    def spills(self) -> bool:
        return self.sass.get("LDL", 0) + self.sass.get("STL", 0) > 0


def compile_launch(launch: Launch, arch: int) -> Any:
    """The Triton kernel of one recorded launch, compiled for `arch` (80, 90, 100)."""
    names = private.parameter_names(launch.kernel)
    types, constants = dict(launch.signature), dict(launch.constants)
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in launch.divisible_by_16
    }
    source = private.source(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": FP_FUSION}
    return triton.compile(source, target=private.target(arch), options=options)


def width(instruction: str) -> int:
    """Bytes a thread of one load or store, such as 16 of LDG.E.128.CONSTANT; 4 where the name does not say."""
    parts = instruction.split(".")
    return next((n for word, n in _BYTES.items() if word in parts), 4)


def resources(compiled: Any) -> Resources:
    """Read a compiled kernel's resources out of its cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()

        def tool(name: str, *flags: str) -> str:
            return subprocess.run(
                [str(private.tool(name)), *flags, cubin.name], capture_output=True, text=True, check=True
            ).stdout

        usage = dict(re.findall(r"(REG|STACK):(\d+)", tool("cuobjdump", "-res-usage")))
        # Without data flow (-ndf), a third of the time: it names where jumps land, which nobody reads here.
        sass = re.findall(
            r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9.]*)", tool("nvdisasm", "-c", "-ndf"), re.MULTILINE
        )
    names = [name.split(".")[0] for name in sass]
    accesses = [width(name) for name in sass if name.split(".")[0] in ("LDG", "STG", "LDGSTS")]
    moved = sum(accesses)
    ptx = compiled.asm["ptx"]
    return Resources(
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        moved=moved,
        wide=16 * accesses.count(16) / moved if moved else 1.0,
        waits=sum(name.startswith("WARPGROUP.DEPBAR") for name in sass),
        sass={name: n for name in _SASS if (n := names.count(name))},
        ptx={name: n for name in _PTX if (n := ptx.count(name))},
    )
