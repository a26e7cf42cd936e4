"""bertfast's own encoder in training: by the stand-in on a CPU, by CUDA where there is a GPU ("triton", which `make gpu` selects).

On a GPU this is what says that the two halves of a layer are right there, eagerly and from graphs.
"""

import copy

import pytest
import torch
from captured import captured_on_cpu
from graph_cases import packed, tokens_of

from bertfast import graphs
from bertfast.models import BertConfig, BertModel
from bertfast.testing import assert_within_budget, rms_error
from bertfast.triton import verified

SIZES = {
    "vocab_size": 50, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 256,
    "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture(params=["stand_in", "triton"])
def device(request):
    if request.param == "triton" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    name = "cpu" if request.param == "stand_in" else "cuda"
    with captured_on_cpu() if name == "cpu" else verified.allow_unverified():
        yield torch.device(name)


def model_of(device, p=0.0):
    torch.manual_seed(3)
    return BertModel(BertConfig(**SIZES, hidden_dropout_prob=p, attention_probs_dropout_prob=p)).train().to(device)


def on(tokens, device):
    ids, positions, bounds = (t.to(device) for t in (tokens.input_ids, tokens.position_ids, tokens.bounds))
    return packed(ids, positions, None, bounds, bounds, tokens.max_seqlen)


def step(model, tokens):
    """Rows, and gradients of a loss that weighs every number."""
    model.zero_grad()
    rows, _ = model.encode(tokens)
    weights = torch.arange(rows.numel(), dtype=torch.float32, device=rows.device).cos().view(rows.shape)
    (rows.float() * weights).sum().backward()
    return rows.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients(device, autocast, checkpointing):
    tokens = tokens_of(100, 0, 27, 1, 60)
    model = model_of(device)
    reference = copy.deepcopy(model).cpu()  # float64 has no kernels: the ops' references
    exact_rows, exact = step(copy.deepcopy(reference).double(), on(tokens, torch.device("cpu")))
    if checkpointing:
        model.gradient_checkpointing_enable()
    with graphs.suspended(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        rows, gradients = step(model, on(tokens, device))
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        patch.setattr("bertfast.nn.device.KINDS", frozenset({"cuda"}))
        eager_rows, eager = step(reference, on(tokens, torch.device("cpu")))
    assert gradients.keys() == exact.keys()
    assert_within_budget(rows.cpu(), eager_rows, exact_rows, "rows", rms_error)
    for name, gradient in gradients.items():
        if "attention.self" in name:  # apart they are a matter of luck: together they are one tensor
            continue
        assert_within_budget(gradient.cpu(), eager[name], exact[name], name, rms_error)


@pytest.mark.parametrize("autocast", [False, True])
def test_replays_give_the_bits_of_eager_steps(device, autocast):
    """Of rows that fill their bucket; with dropout, whose bits advance with every step."""
    model, before = model_of(device, 0.1), None
    for number in range(4):
        tokens = on(tokens_of(64, 32, 32, seed=number), device)
        both = []
        for captured in (True, False):
            torch.manual_seed(number)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                if captured:
                    both.append(step(model, tokens))
                else:
                    with graphs.suspended():
                        both.append(step(model, tokens))
        (rows, gradients), (eager_rows, eager) = both
        assert torch.equal(rows, eager_rows)
        for name, gradient in gradients.items():
            assert torch.equal(gradient, eager[name]), name
        assert before is None or not torch.equal(rows, before)
        before = rows
    assert graphs.memory(model).graphs == 1


def test_two_steps_from_one_graph_do_not_share_gradients(device):
    model = model_of(device)
    for number in range(3):
        _, gradients = step(model, on(tokens_of(64, 64, seed=number), device))
    kept = {name: gradient.clone() for name, gradient in gradients.items()}
    other = dict(gradients)
    step(model, on(tokens_of(64, 64, seed=9), device))
    assert all(torch.equal(other[name], gradient) for name, gradient in kept.items())
