"""The written counter scheme: known bits, statistics, and what they may and may not depend on."""

import pytest
import torch

from bertfast.ops import rng


def _philox_python(key, counter, rounds=7):
    c = list(counter)
    k = list(key)
    for _ in range(rounds):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_published_vector():
    # Random123's known answer for philox4x32-10 with zero key and counter; the helper above is the same code at 10 rounds.
    assert _philox_python((0, 0), (0, 0, 0, 0), rounds=10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 0x123456789ABCDEF])
def test_philox_words(seed):
    state = torch.tensor([seed, 77])
    words = rng.philox(state, torch.tensor([5]), torch.tensor([0xFFFFFFFF]), torch.tensor([3]))[0].tolist()
    assert words == _philox_python((seed & 0xFFFFFFFF, seed >> 32), (5, 0xFFFFFFFF, 3, 77))


def test_rows_do_not_depend_on_size():
    state = rng.new_rng("cpu")
    assert torch.equal(rng.keep_rows(state, 9, 100, 0.3)[:4, :33], rng.keep_rows(state, 4, 33, 0.3))


def test_attention_does_not_depend_on_size():
    state = rng.new_rng("cpu")
    big = rng.keep_attention(state, 2, 3, 40, 50, 0.3)
    assert torch.equal(big[:1, :, :7, :19], rng.keep_attention(state, 1, 3, 7, 19, 0.3))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_keep_rates(p):
    state = rng.new_rng("cpu")
    rows = rng.keep_rows(state, 400, 1000, p).double().mean().item()
    attention = rng.keep_attention(state, 2, 2, 300, 400, p).double().mean().item()
    for measured, rate in ((rows, rng.keep_rate_rows(p)), (attention, rng.keep_rate_attention(p))):
        assert abs(measured - rate) < 6 * (rate * (1 - rate) / 400_000) ** 0.5
    assert abs(rng.keep_rate_rows(p) - (1 - p)) < 1e-5


def test_generator_drives_the_state():
    torch.manual_seed(7)
    first = rng.new_rng("cpu")
    torch.manual_seed(7)
    assert torch.equal(first, rng.new_rng("cpu"))
    assert not torch.equal(first, rng.new_rng("cpu"))


@pytest.mark.parametrize(("p", "state"), [(1.0, True), (-0.1, True), (0.1, False), (0.0, True)])
def test_bad_probability(p, state):
    with pytest.raises(ValueError, match="dropout_p"):
        rng.check_probability(p, rng.new_rng("cpu") if state else None, "op")
