"""What parity is judged on, and the batches it is judged with."""

import pytest
import torch
from rich.console import Console
from torch import nn

from bertfast.bench import cases, render
from bertfast.bench.run import check_parity
from bertfast.bench.verify import Row


class Fixed:
    """Stands in for run.Models: a stock, a fast and an exact answer that the test chooses."""

    def __init__(self, exact, stock, fast):
        self._exact, self._stock, self._fast = exact, stock, fast

    def exact(self, batch):
        return [self._exact]

    def stock(self, dtype):
        return _Answer(self._stock)

    def fast(self, dtype):
        return _Answer(self._fast)


class _Answer(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.last_hidden_state = hidden

    def forward(self, **inputs):
        return self


@pytest.fixture
def exact():
    return torch.randn(6, 16, dtype=torch.float64)


def judge(exact, stock_noise, fast_noise, dtype=torch.float32):
    batch = cases.Batch(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long))
    stock, fast = ((exact + noise).view(2, 3, 16) for noise in (stock_noise, fast_noise))
    return check_parity(Fixed(exact, stock, fast), (batch,), dtype)


def test_as_good_as_stock_passes(exact):
    parity = judge(exact, torch.full_like(exact, 1e-6), torch.full_like(exact, -1e-6))
    assert parity.passed
    assert parity.times_stock == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_times_the_noise_of_stock_fails(exact, dtype):
    scale = 1e-5 if dtype == torch.float32 else 1e-1
    assert not judge(exact, torch.full_like(exact, scale), torch.full_like(exact, 3.2 * scale), dtype).passed


def test_one_bad_value_fails_in_bfloat16(exact):
    noise = torch.full_like(exact, 1e-2)
    spike = noise.clone()
    spike[0, 0] = 0.1
    assert not judge(exact, noise, spike, torch.bfloat16).passed


def test_nan_fails_and_is_shown(exact):
    noise = torch.zeros_like(exact)
    noise[3, 3] = float("nan")
    parity = judge(exact, torch.zeros_like(exact), noise)
    assert not parity.passed
    assert parity.cosine == -1.0
    console = Console(width=200, record=True)
    console.print(render.verify_table([Row(2, 3, "none", "float32", parity)], "x"))
    shown = console.export_text()
    assert "FAILED" in shown
    assert "1 - cosine" in shown
    assert "2e+00" in shown  # of a cosine of -1


@pytest.mark.parametrize("padding", [0.0, 0.25, 0.5, 0.75, 0.9])
def test_padding_is_what_was_asked_for(padding):
    mask = cases.random_batch(30522, 16, 512, padding).attention_mask
    assert 1 - mask.double().mean().item() == pytest.approx(padding, abs=0.035)
    assert mask.sum(1).max() == 512


def test_one_padded_sequence_keeps_its_share():
    assert cases.random_batch(30522, 1, 128, 0.5).real_tokens == 64


@pytest.mark.parametrize("vocabulary", [1, 2, 99, 1000, 30522])
def test_ids_fit_the_vocabulary(vocabulary):
    ids = cases.random_batch(vocabulary, 4, 32, 0.0).input_ids
    assert 0 <= ids.min() <= ids.max() < vocabulary
    assert vocabulary <= 2 or len(ids.unique()) > 1


def test_sentences_spread_from_a_word_to_paragraphs():
    words = sorted(len(line.split()) for line in cases.sentences())
    assert len(words) > 150
    assert words[0] <= 3
    assert 8 <= words[len(words) // 2] <= 20
    assert words[-1] > 150


def test_order_changes_padding_and_not_content():
    folder = cases.minilm_folder()
    mixed, sorted_ = cases.sentence_batches(folder), cases.sentence_batches(folder, by_length=True)
    assert sum(b.real_tokens for b in mixed) == sum(b.real_tokens for b in sorted_)
    assert sum(b.input_ids.numel() for b in sorted_) < sum(b.input_ids.numel() for b in mixed)
