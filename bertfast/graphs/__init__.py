"""Captured calls: what launches hundreds of kernels from Python once, and replays them as one CUDA graph ever after.

Small files with one concern each: `buckets` (sizes), `inputs` (static buffers), `backend` (CUDA graphs, memory pools, whose turn it
is), `workspaces` (what captures leave in torch), `cache` (what an owner has captured, bounds, staleness), `capturing` (what all
captures share), `inference` (one call of ids to rows), `encode` (what it computes for the drop-in and own models), `stack` and
`training_call` (layers forward and backward, in a training loop of the user's own). A call is captured when its bucket comes for
the second time, and only if its first replay gives the eager call's bits; what cannot be captured runs eagerly and says why.
`steps` and `feed` are for training steps as a whole, which `bertfast.train` captures.

On a CPU nothing is captured: tests put a stand-in in the graph's place (`backend.installed(backend.StandIn())`), which calls the
function again on the same buffers. **Nothing of this package has run on a GPU yet**: `CudaBackend` is written to torch's
documentation and sources, everything around it is tested with the stand-in, and functions that are captured run in tests on fake
CUDA tensors, where whatever would wait for the device raises.
"""

from bertfast.graphs.cache import Limits, Memory, clear, memory, reasons
from bertfast.graphs.inference import Outcome, run
from bertfast.graphs.stack import suspended

__all__ = ["Limits", "Memory", "Outcome", "clear", "memory", "reasons", "run", "suspended"]
