"""Two gloo ranks that train a stock model and its optimised copy by every way of sharing the work.

python distributed_worker.py OUT: rank r leaves OUT/rank-r.pt, for each way what both models came to, which test_tool_distributed.py
compares. The ranks are forks of one process, since imports take longer than all the rest.
"""

import copy
import multiprocessing
import operator
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import peft
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoModelForSequenceClassification

import bertfast
from bertfast.convert.families import FAMILIES

RANKS = 2
Result = dict[str, Any]


def pair(family: str = "bert", head: Any = AutoModelForSequenceClassification, lora: bool = False) -> list[nn.Module]:
    torch.manual_seed(0)
    stock = head.from_config(FAMILIES[family].tiny(initializer_range=0.2)).train()
    both = [stock, bertfast.optimize(copy.deepcopy(stock))]
    if not lora:
        return both
    config = peft.LoraConfig(target_modules=["query", "value"], r=4, init_lora_weights=False)
    adapted = []
    for model in both:
        torch.manual_seed(1)
        adapted.append(peft.get_peft_model(model, config))
    return adapted


def batches(count: int = 4) -> list[dict[str, Tensor]]:
    """The same on every rank; rank r takes every second one from r on."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(count):
        mask = torch.arange(12) < torch.tensor([12, 3, 7, 5])[:, None]
        ids = torch.randint(3, 50, mask.shape, generator=generator).masked_fill(~mask, 0)
        labels = torch.randint(0, 2, (4,), generator=generator)
        made.append({"input_ids": ids, "attention_mask": mask.long(), "labels": labels})
    return made


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def result(model: nn.Module, losses: list[float]) -> Result:
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    rows = bertfast.report(plain).to_dict()["modules"]
    return {
        "losses": losses,
        "gradients": {n: whole(p.grad) for n, p in plain.named_parameters() if p.grad is not None},
        "parameters": {n: whole(p) for n, p in plain.named_parameters()},
        "outcomes": sorted({outcome for row in rows if "Layer" in row["kind"] for outcome in row["calls"]}),
    }


def train(model: nn.Module, rank: int) -> Result:
    """Two steps."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for batch in batches()[rank::RANKS]:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return result(model, losses)


def data_parallel(rank: int, lora: bool = False, **options: Any) -> list[Result]:
    return [train(DistributedDataParallel(model, **options), rank) for model in pair(lora=lora)]


def unused_pooler(rank: int, find: bool) -> list[Result]:
    """A loss that the pooler has no part in: torch raises at the second step unless it is to look for such parameters."""
    results = []
    for model in pair(head=AutoModel):
        parallel = DistributedDataParallel(model, find_unused_parameters=find)
        try:
            for batch in batches()[rank::RANKS]:
                model.zero_grad()
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                parallel(**inputs).last_hidden_state[inputs["attention_mask"].bool()].square().mean().backward()
            results.append(result(parallel, []))
        except RuntimeError as error:
            results.append({"error": str(error)})
    return results


def sharded(
    rank: int, layers: bool = True, checkpointing: bool = False, lora: bool = False, narrow: bool = False
) -> list[Result]:
    """FSDP2: embeddings, each layer and the rest, or all as one; between inference before and after."""
    mesh, results = init_device_mesh("cpu", (RANKS,)), []
    options = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)} if narrow else {}
    for model in pair(lora=lora):
        if checkpointing:
            model.gradient_checkpointing_enable()
        base = model.get_base_model() if lora else model
        for part in (base.bert.embeddings, *base.bert.encoder.layer) if layers else ():
            fully_shard(part, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
        inference = [logits(model)]
        each = train(model, rank)
        inference.append(logits(model))
        results.append(each | {"inference": inference})
    refused = []
    for call in (bertfast.optimize, bertfast.restore):
        try:
            call(model)
        except bertfast.UnsupportedModelError as error:
            refused.append(str(error))
    results[1]["refused"] = refused
    return results


def logits(model: Any) -> Tensor:
    inputs = {name: value for name, value in batches(1)[0].items() if name != "labels"}
    with torch.no_grad():
        y = model.eval()(**inputs).logits
    model.train().reshard()  # or an optimizer made now would hold what was gathered
    return y.clone()


def accumulated(accelerator: Any, model: nn.Module, optimizer: Any, those: list[Any]) -> list[float]:
    """The losses of steps on these batches; the gradients of the last one are left."""
    losses = []
    model.zero_grad()
    for batch in those:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            if batch is not those[-1]:
                optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def accelerated(rank: int, folder: Path, **options: Any) -> list[Result]:
    """Accumulation over two batches; the state saved after the first step and loaded after the second, which is then done again."""
    results = []
    for number, model in enumerate(pair()):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loader = DataLoader(batches(8), batch_size=1, collate_fn=operator.itemgetter(0))
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        mine = list(loader)
        losses = accumulated(accelerator, model, optimizer, mine[:2])
        accelerator.save_state(str(folder / str(number)))
        losses += accumulated(accelerator, model, optimizer, mine[2:])
        after = result(accelerator.unwrap_model(model), [])["parameters"]
        accelerator.load_state(str(folder / str(number)))
        losses += accumulated(accelerator, model, optimizer, mine[2:])
        each = result(accelerator.unwrap_model(model), losses)
        results.append(each | {"before": after})
        accelerator.free_memory()
        accelerate.state.AcceleratorState._reset_state()
    return results


def ways(folder: Path) -> dict[str, Callable[[int], list[Result]]]:
    return {
        "ddp": data_parallel,
        "ddp_static": lambda rank: data_parallel(rank, static_graph=True),
        "ddp_find": lambda rank: data_parallel(rank, find_unused_parameters=True),
        "ddp_lora": lambda rank: data_parallel(rank, lora=True),
        "unused": lambda rank: unused_pooler(rank, find=False),
        "unused_found": lambda rank: unused_pooler(rank, find=True),
        "fsdp": sharded,
        "fsdp_whole": lambda rank: sharded(rank, layers=False),
        "fsdp_checkpointing": lambda rank: sharded(rank, checkpointing=True),
        "fsdp_lora": lambda rank: sharded(rank, lora=True),
        "fsdp_bfloat16": lambda rank: sharded(rank, narrow=True),
        "accelerate": lambda rank: accelerated(rank, folder / "accelerate"),
        "accelerate_bfloat16": lambda rank: accelerated(rank, folder / "narrow", mixed_precision="bf16"),
    }


def main(rank: int, port: int, folder: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, rank, RANKS, RANKS, "127.0.0.1", port)), strict=True))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save({name: way(rank) for name, way in ways(folder).items()}, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=main, args=(rank, port, Path(sys.argv[1]))) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in ranks))
