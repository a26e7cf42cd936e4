"""Evaluation of pre-training on a pretended GPU: batches go there through pinned memory, figures are waited for once."""

import pytest
import torch
from fake_cuda import Wait, fake_cuda
from small_corpus import write_corpus

from bertfast.train.pretrain import PretrainTask
from bertfast.train.pretrain_config import PretrainConfig
from bertfast.train.settings import resolve

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
OPTIONS = {
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "data.token_budget": 128,
    "data.max_seq_length": 64,
    "data.workers": 0,
    "train.steps": 1,
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return write_corpus(folder / "train"), write_corpus(folder / "held", 12, seed=1)


@pytest.mark.parametrize("nsp", [True, False])
def test_one_wait(corpora, tmp_path, monkeypatch, nsp):
    train, held_out = map(str, corpora)
    values = {**OPTIONS, "corpus": train, "eval": held_out, "out": str(tmp_path / "run"), "data.nsp": nsp}
    task = PretrainTask(resolve(PretrainConfig, flags=values))
    model = task.model.eval()
    whole = task.evaluate(model)
    assert whole["mlm_loss"] > 0
    count = len(list(task._held_out_batches()))
    handed_out, made, waits = [], task._held_out_batches, []

    def batches():
        for batch in made():
            yield batch
            handed_out.append(batch)  # once it was computed with

    monkeypatch.setattr(task, "_held_out_batches", batches)
    with fake_cuda() as gpu:
        with gpu.preparing():
            model.cuda()
        refuse = gpu.refuse
        monkeypatch.setattr(gpu, "refuse", lambda what: waits.append(what) or refuse(what))
        with pytest.raises(Wait):
            task.evaluate(model)
    assert len(handed_out) == count > 3
    assert len(waits) == 1
