"""A checkpoint appears whole or not at all: every step on the disk is made to fail, and the process to die there."""

import errno
import os
import signal

import pytest
import torch
from faults import Fault, full, kill

from bertfast.train.checkpoint import Checkpoint, Store, load
from bertfast.train.errors import CheckpointError, DiskFullError
from bertfast.train.files import MANIFEST, TEMPORARY, check_folder


def checkpoint(step):
    tensors = {"w": torch.full((3,), float(step))}
    return Checkpoint(step, tensors, {"exp_avg/w": -tensors["w"]}, {"torch.0": torch.get_rng_state()}, {"task": "t"})


def extra(folder):
    (folder / "config.json").write_text("{}")


def save(folder, step, files=None):
    return Store(folder, keep=2, files=files).save(checkpoint(step), extra)


def count_steps(folder):
    files = Fault()
    for step in (1, 2, 3):
        files.count = 0
        save(folder, step, files)
    return files.count


def assert_usable(folder, allowed):
    """The newest complete checkpoint is one of `allowed`, and nothing that looks like one is broken."""
    store = Store(folder, keep=2)
    store.clean()
    assert not list(folder.glob(f"{TEMPORARY}*"))
    path, passed_over = store.latest()
    assert passed_over == []
    assert all(check_folder(each) is None for each in folder.glob("step-*"))
    found = load(path)
    assert found.step in allowed
    assert torch.equal(found.model["w"], torch.full((3,), float(found.step)))
    return found.step


def test_save_load_and_retention(tmp_path):
    for step in (1, 2, 3):
        path = save(tmp_path, step)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert {each.name for each in path.iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "config.json", MANIFEST,
    }  # fmt: skip
    found = load(path)
    assert (found.step, found.state["task"]) == (3, "t")
    assert torch.equal(found.optimizer["exp_avg/w"], torch.full((3,), -3.0))


def test_disk_full_at_every_step(tmp_path):
    total = count_steps(tmp_path / "count")
    assert total > 14
    seen = set()
    for at in range(1, total + 1):
        folder = tmp_path / str(at)
        save(folder, 1)
        save(folder, 2)
        with pytest.raises(DiskFullError, match="no space left") as caught:
            save(folder, 3, Fault(at, full))
        assert caught.value.exit_status == 4
        assert not [path for path in folder.glob(f"{TEMPORARY}*") if "old" not in path.name], (
            "the temporary folder stayed"
        )
        seen.add(assert_usable(folder, (2, 3)))
    assert seen == {2, 3}, "faults before the rename keep the old one, those after it the new one"


def test_kill_at_every_step(tmp_path):
    total = count_steps(tmp_path / "count")
    seen = set()
    for at in range(1, total + 1):
        folder = tmp_path / str(at)
        save(folder, 1)
        save(folder, 2)
        child = os.fork()
        if not child:  # writes files alone: no threads of torch are needed
            save(folder, 3, Fault(at, kill))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        seen.add(assert_usable(folder, (2, 3)))
        save(folder, 3)  # and a resumed run can write it
        assert assert_usable(folder, (3,)) == 3
    assert seen == {2, 3}


def test_other_errors_name_the_folder(tmp_path):
    def denied(name, path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(CheckpointError, match="step-00000001: cannot be written"):
        save(tmp_path, 1, Fault(2, denied))
    assert list(tmp_path.iterdir()) == []


def damage_content(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", damage_content, "model.safetensors does not have the checksum"),
        ("optimizer.safetensors", lambda path: path.write_bytes(b""), "optimizer.safetensors has 0 bytes"),
        ("rng.safetensors", lambda path: path.unlink(), "rng.safetensors is missing"),
        (MANIFEST, lambda path: path.unlink(), "never finished"),
        (MANIFEST, lambda path: path.write_text("{"), "cannot be read"),
    ],
)
def test_latest_passes_over_what_is_damaged_and_says_so(tmp_path, name, damage, words):
    for step in (1, 2):
        save(tmp_path, step)
    damage(tmp_path / "step-00000002" / name)
    path, passed_over = Store(tmp_path, keep=2).latest()
    assert path.name == "step-00000001"
    assert len(passed_over) == 1
    assert passed_over[0].startswith("step-00000002 was passed over: ")
    assert words in passed_over[0]


def test_retention_counts_complete_ones_alone(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    damage_content(tmp_path / "step-00000002" / "model.safetensors")
    Store(tmp_path, keep=1).save(checkpoint(2), extra)
    assert assert_usable(tmp_path, (2,)) == 2, "a damaged one of the same step is replaced"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=256k none {folder} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        save(folder / "c", 1)
        large = Checkpoint(2, {"w": torch.zeros(100_000)}, {}, {}, {})
        with pytest.raises(DiskFullError):
            Store(folder / "c", keep=2).save(large, extra)
        assert assert_usable(folder / "c", (1,)) == 1
    finally:
        os.system(f"umount {folder}")
