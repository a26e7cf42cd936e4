"""A disk that fails, or a process that dies, at one chosen step of those that `Files` has."""

import errno
import os
import signal

from bertfast.train.files import Files

STEPS = ("make_folder", "write_tensors", "write_text", "sync", "rename", "remove_folder")


class Fault(Files):
    """Calls `act` before the step on the disk with this number; counts them."""

    def __init__(self, at=None, act=None):
        self.at, self.act, self.count = at, act, 0


def _step(name):
    def step(self, path, *args):
        self.count += 1
        if self.count == self.at:
            self.act(name, path)
        getattr(Files, name)(self, path, *args)

    return step


for each in STEPS:
    setattr(Fault, each, _step(each))


def full(name, path):
    """A disk that is full in the middle of a file, and a quota that is used up elsewhere."""
    if name.startswith("write"):
        path.write_bytes(b"half")
    raise OSError(errno.ENOSPC if name.startswith("write") else errno.EDQUOT, "full", str(path))


def kill(name, path):
    if name.startswith("write"):
        path.write_bytes(b"half")
    if name == "remove_folder":
        next(path.iterdir()).unlink()
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {"full": full, "kill": kill}
