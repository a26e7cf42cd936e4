"""A run of the toy task that was never stopped, and no pictures where nobody looks at them."""

import pytest
from toy import ToyTask, config

from bertfast.train.loop import train


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("bertfast.train.curves.draw", lambda *_: None)


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    outcome = train(ToyTask(), config(), run)
    assert outcome.finished
    assert "word_loss" in outcome.evaluation
    return run
