"""AdamW and LAMB in one pass beside torch's: the kernels are interpreted, on CPU tensors that count as a GPU's."""

import copy

import pytest
import torch
from torch import nn
from toy import ToyModel

from bertfast import _library
from bertfast.models import BertConfig, BertForPreTraining
from bertfast.nn import joined
from bertfast.nn.parts import parts_of
from bertfast.ops.optimizer import addresses
from bertfast.testing import assert_within_budget
from bertfast.train import one_pass, optim, state
from bertfast.train.config import TrainConfig
from bertfast.train.optim import AdamW, Lamb

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets kernels")
STEPS, RATE = 6, 0.02
NAMES = ("gradient_norm", "adamw_step", "lamb_moments", "lamb_step")


@pytest.fixture
def kernels(triton_ops, monkeypatch):
    monkeypatch.setattr(one_pass, "runs", lambda name, device: True)
    monkeypatch.setattr(one_pass, "op", lambda name, device: triton_ops.launcher(name))


def gradients_of(model, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


def set_gradients(model, step, without=()):
    for number, (parameter, gradient) in enumerate(zip(model.parameters(), gradients_of(model, step), strict=True)):
        parameter.grad = None if number in without else gradient.to(parameter.dtype)


def one_step(model, optimizer, step, max_norm=1.0, without=(), copies=None):
    set_gradients(model, step, without)
    norm = optim.gradient_norm(model)
    optim.update(optimizer, model, norm, max_norm, copies)
    return norm


def twins():
    """A model, the same again, and in float64."""
    model = ToyModel(0.0)
    return model, copy.deepcopy(model), copy.deepcopy(model).double()


def run(model, make, steps=range(STEPS), **options):
    optimizer = make(optim.groups(model, 0.1))
    for step in steps:
        one_step(model, optimizer, step, **options)
    return optimizer


def torchs(groups):
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6, fused=True)


def adamw(groups):
    return AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)


def lamb(groups):
    return Lamb(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)


def assert_models_within_budget(ours, eager, exact):
    for (name, a), b, c in zip(ours.named_parameters(), eager.parameters(), exact.parameters(), strict=True):
        assert_within_budget(a.detach(), b.detach(), c.detach(), name)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.0}, {"without": (1, 4)}], ids=str)
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_steps_are_torchs(kernels, name, options, monkeypatch):
    ours, eager, exact = twins()
    optimizer = run(ours, {"adamw": adamw, "lamb": lamb}[name], **options)
    with monkeypatch.context() as patch:  # torch's functions
        patch.setattr(one_pass, "runs", lambda name, device: False)
        stock = {"adamw": torchs, "lamb": lamb}[name]
        theirs = run(eager, stock, **options)
        run(exact, stock, **options)
    assert_models_within_budget(ours, eager, exact)
    for a, b in zip(ours.parameters(), eager.parameters(), strict=True):
        assert optimizer.state[a].keys() == theirs.state[b].keys()
        for key, value in optimizer.state[a].items():
            torch.testing.assert_close(value, theirs.state[b][key], rtol=1e-4, atol=1e-6)
            assert value.dtype == theirs.state[b][key].dtype


@pytest.mark.parametrize("order", [(torchs, adamw), (adamw, torchs)], ids=["to one pass", "from one pass"])
@pytest.mark.parametrize("saved", ["checkpoint", "state_dict"])
def test_resuming_across(kernels, order, saved):
    before, after = order
    model, whole, exact = twins()
    first = run(model, before, range(3))
    run(whole, torchs)
    run(exact, torchs)
    second = after(optim.groups(model, 0.1))
    if saved == "checkpoint":
        state.restore_optimizer(model, second, state.optimizer_tensors(model, first))
    else:
        second.load_state_dict(first.state_dict())
    for step in range(3, STEPS):
        one_step(model, second, step)
    assert_models_within_budget(model, whole, exact)


def test_withheld_steps(kernels):
    for make in (adamw, lamb):
        model = ToyModel(0.0)
        optimizer = run(model, make, range(2))
        before = copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])
        first = next(model.parameters()).detach().clone()
        optimizer.found_inf = torch.tensor(1.0)
        set_gradients(model, 2)
        next(model.parameters()).grad.fill_(torch.nan)
        optim.update(optimizer, model, optim.gradient_norm(model), 1.0, None)
        now = [model.state_dict(), optimizer.state_dict()["state"]]
        for a, b in zip(*(torch.utils._pytree.tree_leaves(each) for each in (now, before)), strict=True):
            assert torch.equal(a, b)
        optimizer.found_inf.zero_()
        one_step(model, optimizer, 2)
        assert not torch.equal(next(model.parameters()), first)


def test_rates_and_settings_may_change(kernels):
    """As a scheduler or a user changes them: numbers, of groups or for all, or a tensor."""
    ours, eager, exact = twins()
    optimizers = [adamw(optim.groups(ours, 0.1)), torchs(optim.groups(eager, 0.1)), torchs(optim.groups(exact, 0.1))]
    for step in range(STEPS):
        for model, optimizer in zip((ours, eager, exact), optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.01 * step if step % 2 else torch.tensor(0.01 * step)
            optimizer.param_groups[1]["lr"] = 0.005
            optimizer.param_groups[0]["weight_decay"] = 0.01 * step
            one_step(model, optimizer, step)
    assert_models_within_budget(ours, eager, exact)


def test_replaced_parameters_and_state(kernels):
    """Their memory is another: the next step goes there."""
    ours, eager, exact = twins()
    optimizers = [adamw(optim.groups(ours, 0.1)), torchs(optim.groups(eager, 0.1)), torchs(optim.groups(exact, 0.1))]
    for step in range(STEPS):
        for model, optimizer in zip((ours, eager, exact), optimizers, strict=True):
            one_step(model, optimizer, step)
            if step == 2:
                for parameter in model.parameters():
                    parameter.data = parameter.data.clone()
                    optimizer.state[parameter]["exp_avg"] = optimizer.state[parameter]["exp_avg"].clone()
    assert_models_within_budget(ours, eager, exact)


class Copied(joined.Held):
    """Copies of some parameters, as a stack's are."""

    def __init__(self, pairs):
        super().__init__()
        self.given, self.refreshed, self.others = pairs, 0, 0

    def pairs(self):
        return iter(self.given)

    def refresh(self):
        self.refreshed += 1

    def refresh_others(self):
        self.others += 1


def test_copies_are_written_in_the_pass(kernels):
    for make in (adamw, lamb):
        model = ToyModel(0.0)
        optimizer = make(optim.groups(model, 0.1))
        pairs = [(p, p.detach().bfloat16()) for number, p in enumerate(model.parameters()) if number % 2 == 0]
        copies = Copied(pairs)
        one_step(model, optimizer, 0, without=(2,), copies=copies)
        assert copies.refreshed == 0
        assert copies.others == 1, "what is cast from these copies, as for FP8, the pass does not write"
        assert len(pairs) > 2
        assert all(torch.equal(target, source.detach().bfloat16()) for source, target in pairs)
        # Two copies of one parameter, or a copy of what the optimizer does not update: a pass of its own.
        for more in ((pairs[0][0], pairs[0][1].clone()), (nn.Parameter(torch.ones(3)), torch.ones(3))):
            copies = Copied([*pairs, more])
            one_step(model, optimizer, 1, copies=copies)
            assert (copies.refreshed, copies.others) == (1, 0)
        frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        copies = Copied([*pairs, (frozen, torch.ones(3))])
        one_step(model, optimizer, 2, copies=copies)
        assert copies.refreshed == 0
        assert optimizer.copies is optimizer.norm is None, "only steps of the trainer read them"


def test_held_copies_name_their_parameters():
    model = BertForPreTraining(BertConfig(50, 16, 2, 2, 32))
    with joined.held(model) as copies:
        assert list(copies.pairs()) == []
        parameters = [p for layer in model.bert.encoder.layer for p in parts_of(layer).parameters()]
        with torch.no_grad():
            copies.copies(model.bert.encoder, parameters, torch.bfloat16)
        pairs = list(copies.pairs())
        assert len(pairs) == 2 * 10, "three weights and biases of QKV, a bias and three weights beside them"
        assert all(target.dtype == torch.bfloat16 for _, target in pairs)
        assert all(torch.equal(target, source.detach().bfloat16()) for source, target in pairs)


def test_which_adamw_is_built(monkeypatch):
    model, config = ToyModel(0.0), TrainConfig(steps=1)
    assert type(optim.build_optimizer(config, model)) is torch.optim.AdamW
    monkeypatch.setattr(one_pass, "runs", lambda name, device: name == "adamw_step")
    made = optim.build_optimizer(config, model)
    assert type(made) is AdamW
    assert made.defaults == torch.optim.AdamW(model.parameters(), lr=made.defaults["lr"], fused=True).defaults | {
        name: made.defaults[name] for name in ("betas", "eps", "weight_decay")
    }


def test_only_a_gpu_with_kernels_runs_them(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    for name in NAMES:
        monkeypatch.setattr(_library, "resolved", lambda name, key: _library.meaning(name))
        assert not one_pass.runs(name, gpu)
        monkeypatch.setattr(_library, "resolved", lambda name, key: print)
        assert one_pass.runs(name, gpu)
        assert not one_pass.runs(name, cpu)
        assert one_pass.op(name, gpu) is print
        assert one_pass.op(name, cpu) is _library.op(name)


def test_hooks_and_a_scaler(kernels):
    """Whoever hooks an optimizer's step is called once, and a scaler is refused."""
    model = ToyModel(0.0)
    optimizer = adamw(optim.groups(model, 0.1))
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    one_step(model, optimizer, 0)
    assert calls == [1]
    set_gradients(model, 1)
    assert optimizer.step(lambda: 3.5) == 3.5
    optimizer.grad_scale = torch.tensor(2.0)
    with pytest.raises(RuntimeError, match="GradScaler"):
        optimizer.step()


def test_placing_changes_nothing(kernels):
    model = ToyModel(0.0)
    optimizer = run(model, adamw, range(1))
    set_gradients(model, 1)
    before = copy.deepcopy(model.state_dict())
    copies = Copied([(nn.Parameter(torch.ones(1)), None)])
    with one_pass.placing() as placed:
        optim.update(optimizer, model, optim.gradient_norm(model), 1.0, copies)
    assert (copies.refreshed, copies.others) == (0, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(placed.entries) == 2
    assert not addresses.is_placing()
