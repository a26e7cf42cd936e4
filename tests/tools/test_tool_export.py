"""torch.export of the families' heads, with any batch and length, in torch's own operators and ours."""

import pytest
import torch
from transformers_cases import trio

from bertfast.testing import assert_within_budget


def batch(size, seqlen):
    ids = torch.arange(size * seqlen).view(size, seqlen) % 30 + 5
    mask = torch.arange(seqlen) < torch.tensor([seqlen, 3, 5, 1])[:size, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


@torch.no_grad()
@pytest.mark.tool("torch.export", "other families with their heads, dynamic batch and length", "falls back")
@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_a_classifier_with_dynamic_shapes(family):
    fast, stock, exact = trio(family, "ForSequenceClassification")
    inputs = batch(4, 11)
    dims = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("seqlen", min=2, max=60)}
    program = torch.export.export(fast, (), inputs, dynamic_shapes=dict.fromkeys(inputs, dims), strict=False)
    assert all("encoder_layers" not in str(node.target) for node in program.graph.nodes)
    module = program.module()
    for each in (inputs, batch(3, 17), batch(2, 6)):
        assert_within_budget(*(model(**each).logits for model in (module, stock, exact)))
