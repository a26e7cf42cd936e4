"""One training step of our own model, loss and gradients against the same model in float64: for `make matrix`."""

import copy

import torch

from bertfast import models
from bertfast.models import BertConfig

CONFIG = BertConfig(
    vocab_size=70,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def test_one_step_of_masked_lm():
    torch.manual_seed(1)
    model = models.BertForMaskedLM(CONFIG).train()
    exact = copy.deepcopy(model).double()
    ids = torch.randint(1, 70, (3, 12))
    mask = (torch.arange(12) < torch.tensor([12, 5, 8])[:, None]).long()
    labels = torch.where((torch.arange(12) % 3 == 0) & mask.bool(), ids, -100)
    losses = []
    for one in (model, exact):
        loss = one(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=1e-6)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    oracles = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    assert gradients.keys() == oracles.keys()
    assert len(gradients) > 20
    largest = max(float(g.abs().max()) for g in oracles.values())
    for name, gradient in gradients.items():
        assert float((gradient.double() - oracles[name]).abs().max()) <= 1e-5 * largest, name
    before = copy.deepcopy(model.state_dict())
    torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True).step()
    assert sum(not torch.equal(before[name], value) for name, value in model.state_dict().items()) >= len(gradients)
