"""What C++ refuses reaches Python as an exception, from every op and thread, and the process lives on.

Each case runs in a process of its own, with many OpenMP threads and Triton's compiler loaded where it is installed: an exception
that nobody can catch ends the process, and with it every test after it.
"""

import subprocess
import sys

import pytest

from bertfast import _ext

CODE = """
import faulthandler, importlib.util, threading, traceback
faulthandler.enable()
import torch
if {triton} and importlib.util.find_spec("triton"):
    import triton
    from triton._C import libtriton
import bertfast
from bertfast import _ext

torch.set_num_threads(16)  # OMP_NUM_THREADS is lowered to the cores that there are
ops, cpu = torch.ops.bertfast, torch.ops.bertfast_cpu
x, v, none = torch.randn(4, 6), torch.randn(6), torch.empty(0)
bounds = torch.tensor([0, 4], dtype=torch.int32)
ids = torch.zeros(4, dtype=torch.long)
far = torch.full((4,), 99)
qkv = torch.randn(4, 3, 2, 8)
calls = {{
    "product": lambda: cpu.product(x, [torch.randn(5, 8)], 0, None, torch.empty(4, 8)),
    "product of none": lambda: cpu.product(x, [], 0, None, torch.empty(4, 8)),
    "pack_weight": lambda: cpu.pack_weight(v, torch.float32, False),
    "packed_linear": lambda: cpu.packed_linear(x, none, none, none, 8, None, 0),
    "dropout_add_norm_fwd": lambda: ops.dropout_add_norm_fwd(x, None, None, v[:5], v, 1e-12, 0.0, None),
    "attention_fwd": lambda: ops.attention_fwd(qkv, torch.tensor([0, 9], dtype=torch.int32), 4, 1.0, 0.0, None),
    "attention_padded_fwd": lambda: ops.attention_padded_fwd(qkv, None, 1.0, 0.0, None),
    "embedding_sum_norm_fwd": lambda: ops.embedding_sum_norm_fwd(
        far, ids, ids, torch.randn(9, 6), torch.randn(9, 6), torch.randn(2, 6), v, v, 0, 1e-12, 0.0, None),
    "bias_gelu_fwd": lambda: ops.bias_gelu_fwd(x, v[:5], False),
    "unpad": lambda: ops.unpad(x, far),
    "repad": lambda: ops.repad(x, far, 8),
    "Encoder": lambda: _ext.load().Encoder(torch.float64, False, 2, 1.0, 1, [[v] * 16], [(1e-12, 1e-12)]),
}}

def refused(name):
    try:
        calls[name]()
    except (ValueError, IndexError, RuntimeError, TypeError) as error:
        assert str(error), name
        return
    raise SystemExit(f"{{name}} was not refused")

wrong = []
def work(name):
    try:
        for _ in range(20):
            refused(name)
    except BaseException:
        wrong.append(traceback.format_exc())

for name in calls:
    refused(name)
threads = [threading.Thread(target=work, args=(name,)) for name in calls]
for one in threads: one.start()
for one in threads: one.join()
assert not wrong, wrong[0]
print("alive", len(calls), torch.get_num_threads())
"""


@pytest.mark.parametrize("triton", [False, True], ids=["alone", "beside_triton"])
def test_refusals_reach_python(triton):
    if _ext.load() is None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(triton=triton)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("alive 12 16")
