"""Two ranks that read their steps late: both stop for the same bad step, and at the same step for a signal to one of them."""

import json
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import late_ranks_worker
import pytest
import torch
from late_ranks_worker import BAD, RUNS, SIGNALLED
from safetensors.torch import load_file
from toy import assert_same, batch_of

from bertfast.train.distributed import Ranks
from bertfast.train.flags import Flags
from bertfast.train.loop import FLAGS_LAG

WORKER = Path(late_ranks_worker.__file__)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late_ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    roots = [str(WORKER.parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*launch, str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def said(out, name):
    return [json.loads((out / f"said-{rank}.json").read_text())[name] for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_both_ranks_stop_for_the_bad_step(out, name):
    for rank, text in enumerate(said(out, name)):
        assert text.startswith(f"NotFiniteError: step {BAD}: ")
        assert "word_loss is nan" in text
        assert f"bad-batch-step-{BAD}-rank-{rank}.safetensors" in text
        kept = load_file(out / name / f"bad-batch-step-{BAD}-rank-{rank}.safetensors")
        assert torch.equal(kept["0.input_ids"], batch_of(0, 2 * BAD - 2 + rank).input_ids)
    saved = load_file(out / f"{name}_before/checkpoints/step-{BAD - 1:08d}/model.safetensors")
    for rank in range(2):
        left = load_file(out / f"{name}-{rank}.safetensors")
        assert left.keys() == saved.keys()
        for key, tensor in saved.items():
            assert torch.equal(left[key], tensor), key


@pytest.mark.parametrize("name", RUNS)
def test_reading_late_changes_no_bit_of_two_ranks(out, name):
    assert_same(out / f"{name}_at_once", out / f"{name}_late")


def test_a_signal_to_one_rank_stops_both_at_the_same_step(out):
    stopped = SIGNALLED + FLAGS_LAG
    for text in said(out, "signal"):
        assert f"after step {stopped} of 12; its checkpoint is saved" in text
    assert (out / f"signal/checkpoints/step-{stopped:08d}").is_dir()
    assert_same(out / "ddp_late", out / "signal")


class TwoRanks(Ranks):
    """This rank and one whose flags are `other`'s, one list a call."""

    other: deque

    def sum(self, tensor):
        told = self.other.popleft()
        tensor[-len(told) :] += torch.tensor(told, dtype=tensor.dtype)
        return tensor


@pytest.mark.parametrize("lag", [0, 2])
def test_flags_are_read_late(lag):
    ranks = TwoRanks(0, 2, torch.device("cpu"))
    told = [[False, False], [True, False], [False, True], [False, False], [False, False]]
    object.__setattr__(ranks, "other", deque(told))
    flags, sums = Flags(ranks, lag), torch.arange(3.0, dtype=torch.float64)
    own = [[False, False], [True, False], [False, False], [True, False], [False, False]]
    both = [[a or b for a, b in zip(*pair, strict=True)] for pair in zip(told, own, strict=True)]
    assert [flags.exchange(sums, each) for each in own] == [[False, False]] * lag + both[: len(both) - lag]
    assert torch.equal(sums, torch.arange(3.0, dtype=torch.float64))


def test_flags_alone_are_known_at_once():
    flags = Flags(Ranks(0, 1, torch.device("cpu")), lag=2)
    assert flags.exchange(torch.zeros(2), [True, False]) == [True, False]
