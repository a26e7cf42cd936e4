"""A step of pre-training: BertForPreTraining, masked-LM on 15 % of the real tokens and next-sentence, dropout 0.1."""

import contextlib
from typing import Any

import numpy as np
import torch

import bertfast
from benchmarks.cpu.worker import timed_turn
from bertfast.bench.cases import PRESETS, SEED, BenchError, preset_config
from bertfast.bench.protocol import peak_memory

MASKED = 0.15


class Training:
    """A side's model and batch. bfloat16 is autocast over float32 weights."""

    def __init__(self, side: str, model: str, dtype: str, threads: int):
        from transformers import BertForPreTraining

        if model not in PRESETS:
            raise BenchError(f"training is measured on a preset ({', '.join(PRESETS)}), got {model!r}")
        torch.set_num_threads(threads)
        torch.manual_seed(SEED)
        self.model = BertForPreTraining(preset_config(model)).train()
        self.autocast = dtype == "bfloat16"
        if side == "training bertfast":
            bertfast.optimize(self.model, masked_head=True)

    def batch(self, ids: np.ndarray, mask: np.ndarray) -> None:
        generator = torch.Generator().manual_seed(SEED)
        input_ids, attention_mask = torch.from_numpy(ids.copy()), torch.from_numpy(mask.copy())
        chosen = (torch.rand(ids.shape, generator=generator) < MASKED) & attention_mask.bool()
        self.inputs: dict[str, Any] = {
            "input_ids": input_ids.masked_fill(chosen, 103),
            "attention_mask": attention_mask,
            "labels": input_ids.masked_fill(~chosen, -100),
            "next_sentence_label": torch.randint(0, 2, (len(ids),), generator=generator),
        }

    def step(self) -> float:
        """Forward, backward, gradients dropped; returns the loss."""
        scope = torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with scope:
            loss = self.model(**self.inputs).loss
        loss.backward()
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach())

    def turn(self, calls: int) -> float:
        return timed_turn(self.step, calls)

    def memory(self) -> tuple[int | None, int | None]:
        return peak_memory(self.step), None
