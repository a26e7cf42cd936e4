"""torch's private names: each in bertfast/_torch.py alone, and without it the slow way with the right numbers."""

import ast
import copy
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import bertfast
from bertfast import _ext, _torch, doctor, models
from bertfast.models import BertConfig
from bertfast.nn import linear, plain, stack
from bertfast.nn.parts import Kind
from bertfast.ops import onednn, packed_linear
from bertfast.ops.embedding_sum_norm import tied
from bertfast.train.optim import Lamb

ROOT = Path(bertfast.__file__).parent
SMALL = BertConfig(
    vocab_size=70,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
FOREACH = ("add_", "addcmul_", "copy_", "div", "mul_", "norm", "sqrt", "sub_")


def _forget() -> None:
    importlib.reload(_torch)
    onednn._entry_points.cache_clear()
    tied.holders_of_fresh.cache_clear()


@pytest.fixture
def without():
    """A function that takes a private name from torch, as a release might; the fixture puts all back."""
    with pytest.MonkeyPatch.context() as patch:

        def take(name: str) -> None:
            path, _, last = name.rpartition(".")
            if last == "_foreach_*":
                for one in FOREACH:
                    patch.delattr(torch, f"_foreach_{one}")
            elif path == "ops.mkldnn" or path == "Tensor":
                # Looked up again whenever it is missing, or a built-in type's: hidden rather than deleted.
                patch.setattr(_torch._find(path), last, None)
            else:
                patch.delattr(_torch._find(path) if path else torch, last, raising=False)
            _forget()

        yield take
    _forget()


def batch():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 70, (3, 12), generator=generator)
    mask = (torch.arange(12) < torch.tensor([12, 5, 8])[:, None]).long()
    return ids, mask, torch.where((torch.arange(12) % 3 == 0) & mask.bool(), ids, -100)


def assert_close(value, exact, what):
    value, exact = value.detach(), exact.detach()
    assert float((value.double() - exact).abs().max()) <= 1e-5 * max(1.0, float(exact.abs().max())), what


def check_numbers():
    """Inference, a training step with a tied table, and an update by LAMB, against float64."""
    torch.manual_seed(1)
    ids, mask, labels = batch()
    model = models.BertForMaskedLM(SMALL)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        pair = [one.eval()(input_ids=ids, attention_mask=mask).logits for one in (model, exact)]
    real = mask.bool() if pair[0].dim() == 3 else slice(None)
    assert_close(pair[0][real], pair[1][real], "inference")
    for one in (model, exact):
        one.train()(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        if p.grad is not None:
            assert_close(p.grad, q.grad, name)
    a, b = torch.randn(4, 16).to(torch.float8_e4m3fn), torch.randn(16, 16).to(torch.float8_e4m3fn)
    product = _torch.scaled_mm(a, b.t(), torch.tensor(2.0), torch.tensor(0.5), None, torch.float32, False)
    assert_close(product, a.double() @ b.double().t(), "FP8 product")
    for one in (model, exact):
        Lamb(one.parameters(), lr=0.01).step()
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert_close(p, q, f"{name} after LAMB")


def _stack_is_used() -> bool:
    layer = bertfast.nn.BertLayer(32, 2, 64).eval()
    with torch.no_grad():
        return stack.find([layer], torch.randn(4, 32), Kind(2, 1.0, "none")) is not None


def _is_unfused() -> bool:
    return not linear.ordinary([torch.ones(2)]) and not _stack_is_used()


# Name -> whether the slow way is taken now.
SLOW = {
    "_C._functorch.peek_interpreter_stack": _is_unfused,
    "_C._len_torch_dispatch_stack": lambda: not _stack_is_used(),
    "_C._storage_Use_Count": lambda: tied._holders(torch.ones(2)) is None,
    "Tensor._use_count": lambda: tied._holders(torch.ones(2)) is None,
    "_C._dispatch_has_kernel_for_dispatch_key": lambda: doctor.owner("unpad", "CPU").startswith("unknown"),
    "_C._cuda_getCurrentRawStream": lambda: not hasattr(torch._C, "_cuda_getCurrentRawStream"),
    "_C._cuda_endAllocateToPool": lambda: _torch._find("_C._cuda_endAllocateToPool") is None,
    "_C._cuda_releasePool": lambda: _torch._find("_C._cuda_releasePool") is None,
    "_C._autograd._top_saved_tensors_default_hooks": lambda: _torch.saves_elsewhere(),
    "_C._current_graph_task_id": lambda: _torch.in_backward(),
    "nn.modules.module._has_any_global_hook": lambda: not plain.untouched(nn.Linear(2, 2)),
    "utils._pytree.register_dataclass": lambda: not hasattr(torch.utils._pytree, "register_dataclass"),
    "_foreach_*": lambda: "one_by_one" in getattr(_torch.foreach("add_"), "__qualname__", ""),
    "_scaled_mm": lambda: _torch._scaled is None,
    "ops.mkldnn._linear_pointwise": lambda: not onednn.available(),
    "ops.mkldnn._reorder_linear_weight": lambda: not onednn.available(),
    "ops.mkldnn._is_mkldnn_bf16_supported": lambda: not onednn.can_prepack(torch.ones(4, 4, dtype=torch.bfloat16)),
}


def test_every_name_is_tried():
    assert SLOW.keys() == _torch.NAMES.keys()


@pytest.mark.parametrize("name", SLOW)
def test_without_a_name(name, without, monkeypatch):
    if name.startswith("ops.mkldnn"):  # so that products need oneDNN's
        monkeypatch.setattr(packed_linear, "available", lambda *_, **__: False)
    without(name)
    assert SLOW[name]()
    check_numbers()
    assert doctor.examine()["owners"]


def test_with_every_name():
    """Where this torch has them, the fast ways are taken: the tests above would otherwise compare the slow way with itself."""
    _forget()
    fast = {name for name, slow in SLOW.items() if not slow()}
    always = {
        "_C._storage_Use_Count",
        "Tensor._use_count",
        "_C._dispatch_has_kernel_for_dispatch_key",
        "_C._autograd._top_saved_tensors_default_hooks",
        "_C._current_graph_task_id",
        "nn.modules.module._has_any_global_hook",
        "_foreach_*",
        "ops.mkldnn._linear_pointwise",
        "ops.mkldnn._reorder_linear_weight",
    }
    assert always <= fast
    if _ext.load() is not None and packed_linear.available(torch.float32, 32):
        assert {"_C._functorch.peek_interpreter_stack", "_C._len_torch_dispatch_stack"} <= fast
    check_numbers()


def test_stream_without_the_raw_name(without, monkeypatch):
    without("_C._cuda_getCurrentRawStream")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 40 + device}))
    assert _torch.current_stream(2) == 42
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 7 + device, raising=False)
    assert _torch.current_stream(2) == 9


@pytest.mark.parametrize("missing", ["_cuda_endAllocateToPool", "_cuda_releasePool"])
def test_ending_a_capture_without_a_name(monkeypatch, missing):
    """Both or neither: a pool released while captures go into it is worse than one that is not."""
    called = []
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda device, pool, name=name: called.append(name), raising=False)
    _torch.end_capture(0, (0, 1))
    assert called == ["_cuda_endAllocateToPool", "_cuda_releasePool"]
    monkeypatch.delattr(torch._C, missing)
    _torch.end_capture(0, (0, 1))
    assert len(called) == 2


def _wrong_numbers(x, packed, bias, activation, scalars, algorithm):
    return torch.zeros(x.shape[0], 8)


def _other_signature(x, packed):
    raise AssertionError("not reached: the call has more arguments")


def _refuses(*arguments):
    raise RuntimeError("unsupported")


@pytest.mark.parametrize("function", [_wrong_numbers, _other_signature, _refuses])
def test_onednn_that_means_something_else(function, monkeypatch):
    right = _torch.onednn()
    monkeypatch.setattr(packed_linear, "available", lambda *_, **__: False)
    monkeypatch.setattr(_torch, "onednn", lambda: right._replace(linear_pointwise=function))
    onednn._entry_points.cache_clear()
    try:
        assert not onednn.available()
        with pytest.raises(RuntimeError, match="can_prepack"):
            onednn.prepack(torch.ones(4, 4))
        check_numbers()
    finally:
        onednn._entry_points.cache_clear()


def test_onednn_is_not_judged_inside_a_mode():
    from torch.utils.flop_counter import FlopCounterMode

    onednn._entry_points.cache_clear()
    with FlopCounterMode(display=False):
        assert not onednn.available()
    assert onednn.available(), "what was seen inside the mode must not be kept"


def test_dataclasses_without_the_private_name(without, monkeypatch):
    # torch.export's function calls the private one in this torch: that it is asked is what can be seen.
    registered = []
    monkeypatch.setattr(torch.export, "register_dataclass", registered.append)
    without("utils._pytree.register_dataclass")
    _torch.register_dataclass(BertConfig)
    assert registered == [BertConfig]


def test_one_by_one_is_foreach(without):
    a, b = [torch.randn(3), torch.randn(2, 2)], [torch.randn(3), torch.randn(2, 2)]
    numbers = [torch.tensor(2.0), torch.tensor(3.0)]

    def use():
        first, second = [t.clone() for t in a], [t.clone() for t in b]
        _torch.foreach("sub_")(first, [0.3 * t for t in second])
        _torch.foreach("addcmul_")(first, second, second, value=0.5)
        _torch.foreach("mul_")(first, numbers)
        _torch.foreach("mul_")(second, torch.tensor(0.5))
        _torch.foreach("add_")(second, torch.tensor(2.0))
        _torch.foreach("add_")(first, second, alpha=0.25)
        _torch.foreach("add_")(second, 1e-3)
        return [*first, *second, *_torch.foreach("norm")(first), *_torch.foreach("div")(first, second)]

    together = use()
    without("_foreach_*")
    torch.testing.assert_close(use(), together, rtol=1e-6, atol=1e-6)


def private_names(path: Path) -> set[str]:
    """Dotted names that begin at torch and have a private part, other than __version__ and the like."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts, owner = [node.attr], node.value
            while isinstance(owner, ast.Attribute):
                parts.append(owner.attr)
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in ("torch", "torch_module"):
                parts.append("torch")
                names |= {".".join(reversed(parts))} if any(p[0] == "_" and p[:2] != "__" for p in parts) else set()
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            private = [a.name for a in node.names if a.name.startswith("_")] + [
                p for p in (node.module or "").split(".") if p.startswith("_")
            ]
            names |= {f"{node.module}: {name}" for name in private}
    return names


def test_private_names_stand_in_one_file():
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name != "_torch.py":
            assert not private_names(path), f"{name}: ask bertfast/_torch.py"
