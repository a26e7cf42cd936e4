"""Prints the bytes that a training step takes for each token, measured as growth of the peak of resident memory, and as
estimated: a line for each precision, without and with gradient checkpointing. Each in a process of its own, since a peak never
falls.
"""

import os
import resource

import torch

from bertfast.models import BertConfig, BertForPreTraining
from bertfast.train.config import TrainConfig
from bertfast.train.memory import estimate

LENGTH = 64


def step(model, sequences, precision):
    tokens = sequences * LENGTH
    ids = torch.randint(5, 100, (tokens,))
    labels = torch.where(torch.rand(tokens) < 0.15, ids, -100)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        out = model(
            ids,
            position_ids=torch.arange(tokens) % LENGTH,
            token_type_ids=torch.zeros_like(ids),
            cu_seqlens=torch.arange(0, tokens + 1, LENGTH, dtype=torch.int32),
            max_seqlen=LENGTH,
            labels=labels,
            next_sentence_label=torch.zeros(sequences, dtype=torch.int64),
        )
    out.loss.backward()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(precision, checkpointing):
    config = TrainConfig(steps=1, precision=precision, gradient_checkpointing=checkpointing)
    model = BertForPreTraining(BertConfig(100, 128, 4, 2, 512)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    few, many = 8, 96
    step(model, few, precision)
    before = peak()
    step(model, many, precision)
    per_token = (peak() - before) / ((many - few) * LENGTH)
    print(precision, checkpointing, per_token, estimate(model, config).per_token, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for precision in ("fp32", "bf16"):
        for checkpointing in (False, True):
            child = os.fork()
            if not child:
                measure(precision, checkpointing)
                os._exit(0)
            os.waitpid(child, 0)
