"""LAMB against its algorithm written out, parameter groups, clipping, and schedules against transformers'."""

import math

import pytest
import torch
from torch import nn
from toy import ToyModel

from bertfast.models import BertConfig, BertForPreTraining
from bertfast.train import schedule
from bertfast.train.config import TrainConfig
from bertfast.train.optim import Lamb, build_optimizer, clip, gradient_norm, groups


def lamb_by_hand(weight, gradients, lr, beta1, beta2, eps, decay):
    """Algorithm 2 of arXiv:1904.00962, one number at a time in double precision."""
    x = [float(v) for v in weight]
    m, v = [0.0] * len(x), [0.0] * len(x)
    for t, gradient in enumerate(gradients, 1):
        for i, g in enumerate(float(value) for value in gradient):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g * g
        r = [(m[i] / (1 - beta1**t)) / (math.sqrt(v[i] / (1 - beta2**t)) + eps) + decay * x[i] for i in range(len(x))]
        size, length = (math.sqrt(sum(value * value for value in part)) for part in (x, r))
        trust = size / length if decay and size and length else 1.0
        x = [x[i] - lr * trust * r[i] for i in range(len(x))]
    return x


@pytest.mark.parametrize("decay", [0.01, 0.0])
def test_lamb_is_the_papers(decay):
    weights = [torch.randn(5), torch.zeros(4), 100 * torch.randn(3)]
    gradients = [[torch.randn_like(w) for _ in range(4)] for w in weights]
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = Lamb([{"params": parameters, "weight_decay": decay}], lr=0.02, betas=(0.9, 0.99), eps=1e-6)
    for step in range(4):
        for parameter, own in zip(parameters, gradients, strict=True):
            parameter.grad = own[step].clone()
        optimizer.step()
    for parameter, weight, own in zip(parameters, weights, gradients, strict=True):
        wanted = lamb_by_hand(weight, own, 0.02, 0.9, 0.99, 1e-6, decay)
        assert torch.allclose(parameter.detach(), torch.tensor(wanted), rtol=2e-5, atol=1e-6)


def test_biases_and_norms_do_not_decay():
    model = BertForPreTraining(BertConfig(50, 16, 1, 2, 32))
    decaying, still = groups(model, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    kept = {names[id(p)] for p in still["params"]}
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.01, 0.0)
    assert kept == {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert "bert.embeddings.word_embeddings.weight" in {names[id(p)] for p in decaying["params"]}
    assert len(decaying["params"]) + len(still["params"]) == len(names)
    assert len(groups(ToyModel(0.0), 0.1)[1]["params"]) == 4, "a norm under another name, and two biases"


def test_adamw_is_torchs_with_decoupled_decay():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(TrainConfig(steps=1, learning_rate=0.1, weight_decay=0.5), model)
    model.weight.grad, model.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(model.weight, before * (1 - 0.1 * 0.5))


def test_clipping_scales_all_by_the_global_norm():
    model = ToyModel(0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    norm = gradient_norm(model)
    assert torch.allclose(norm, wanted)
    clip(model, norm, 0)
    assert torch.allclose(gradient_norm(model), wanted)
    clip(model, norm, 0.5)
    assert gradient_norm(model).item() == pytest.approx(0.5, rel=1e-4)
    clip(model, gradient_norm(model), 100.0)
    assert gradient_norm(model).item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules_are_transformers(name, warmup):
    transformers = pytest.importorskip("transformers")
    wanted = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_scheduler(wanted, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(21):
        assert schedule.factor(name, step, 20, warmup) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_run_lengths():
    assert TrainConfig(epochs=2, batches_per_step=4).total_steps(10) == 5
    assert TrainConfig(epochs=0.5, batches_per_step=3).total_steps(10) == 2, "the last step is made full"
    assert TrainConfig(steps=200).warmup(200) == 20
    assert TrainConfig(steps=200, warmup_steps=0).warmup(200) == 0
