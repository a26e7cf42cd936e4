"""Every pooling against sentence-transformers' own, prompts left out or not."""

import pytest
import torch

from bertfast.encoding.pooling import pool
from bertfast.encoding.recipe import POOLINGS
from bertfast.testing import assert_within_budget


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("mode", POOLINGS)
def test_as_sentence_transformers(mode, skip):
    module = pytest.importorskip("sentence_transformers.sentence_transformer.modules.pooling")
    hidden = torch.randn(5, 11, 8)
    lengths = torch.tensor([11, 4, 7, 10, 5])
    mask = (torch.arange(11) < lengths[:, None]).long()
    theirs = module.Pooling(8, mode, include_prompt=not skip)

    def of(states):
        features = {"token_embeddings": states, "attention_mask": mask, "prompt_length": skip}
        return theirs(features)["sentence_embedding"]

    assert_within_budget(pool(hidden, lengths, [mode], skip), of(hidden), of(hidden.double()), mode)


def test_several_stand_one_after_another():
    hidden, lengths = torch.randn(3, 4, 8), torch.tensor([4, 1, 2])
    both = pool(hidden, lengths, ["cls", "max"])
    assert torch.equal(both, torch.cat([pool(hidden, lengths, [mode]) for mode in ("cls", "max")], dim=1))


def test_what_stands_at_padding_is_not_read():
    hidden, lengths = torch.randn(3, 6, 8), torch.tensor([6, 2, 3])
    spoiled = hidden.clone()
    spoiled[torch.arange(6) >= lengths[:, None]] = torch.nan
    for mode in POOLINGS:
        assert torch.equal(pool(spoiled, lengths, [mode]), pool(hidden, lengths, [mode])), mode


def test_a_text_that_is_all_prompt_keeps_its_last_token():
    hidden = torch.randn(1, 3, 8)
    for mode in POOLINGS:
        expected = hidden[:, 2]
        made = pool(hidden, torch.tensor([3]), [mode], skip=7)
        torch.testing.assert_close(made, expected)


def test_half_precision_is_summed_in_single():
    hidden = torch.full((1, 300, 4), 1.0).bfloat16()
    hidden[0, 0] = 256.0
    assert pool(hidden, torch.tensor([300]), ["mean"])[0, 0] == pytest.approx(555 / 300)
