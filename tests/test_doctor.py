"""doctor: it names owners and advice from what it finds, and runs without transformers and without the extension."""

import json
import os
import subprocess
import sys

import pytest
import torch

from bertfast import _ext, _library, doctor


def test_every_op_is_listed_with_both_owners():
    owners = doctor.examine()["owners"]
    assert tuple(owners) == _library.names()
    assert all(set(row) == {"CPU", "CUDA"} for row in owners.values())
    assert not any(row["CUDA"] == "kernel" for row in owners.values())


def test_owner_follows_the_dispatcher():
    expected = "C++" if _ext.load() else "eager reference"
    assert doctor.owner("attention_fwd", "CPU") == expected


def test_facts_are_plain_json():
    facts = json.loads(json.dumps(doctor.examine()))
    assert facts["versions"]["torch"]
    assert facts["processor"]
    assert facts["cores"] >= 1


def test_idle_cores_are_advice(monkeypatch):
    monkeypatch.setattr(doctor, "_cores", lambda: torch.get_num_threads() + 1)
    slow = doctor.examine()["slow"]
    assert any("cores work" in item["what"] for item in slow)
    assert all(item["what"] and item["why"] and item["mend"] for item in slow)


@pytest.mark.parametrize(
    ("environment", "block", "expected"),
    [
        ({"BERTFAST_DISABLE_EXT": "1"}, "", "BERTFAST_DISABLE_EXT=1 is set"),
        ({}, "transformers", "pip install 'bertfast[hf]'"),
    ],
)
def test_what_is_missing_is_said_and_is_no_error(environment, block, expected):
    # find_spec raises for a module that sys.modules holds as None, so a finder that hides the name stands in for that.
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {block!r} else find(name, *a)\n"
        "from bertfast.cli import app; app(['doctor'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert expected in " ".join(done.stdout.split())
