"""attn_implementation="bertfast" beside "sdpa" in models whose layers `optimize` does not know: whole forward passes, in turn.

python -m benchmarks.attention_alone             # two layers of ModernBERT-base and ViT-base, float32 and bfloat16
python -m benchmarks.attention_alone --runs 40
"""

import argparse
import copy
from typing import Any

import torch
from transformers import ModernBertConfig, ModernBertModel, ViTConfig, ViTModel

import bertfast
from bertfast.bench.protocol import interleave

TEXT_SHAPES = ((1, 32, 0.0), (8, 64, 0.4), (8, 128, 0.0), (8, 128, 0.4), (2, 512, 0.4), (1, 2048, 0.0))


def text(batch: int, seqlen: int, padding: float) -> dict[str, torch.Tensor]:
    """Random ids whose lengths fall evenly, such that this share of the batch is padding."""
    shortest = 1.0 - 2.0 * padding
    lengths = torch.linspace(seqlen, seqlen * shortest, batch).long().clamp(min=1)
    mask = torch.arange(seqlen) < lengths[:, None]
    return {"input_ids": torch.randint(5, 50_000, (batch, seqlen)), "attention_mask": mask.long()}


def measure(name: str, stock: Any, inputs: dict[str, torch.Tensor], runs: int) -> None:
    ours = copy.deepcopy(stock)
    ours.set_attn_implementation("bertfast")
    with torch.inference_mode():
        comparison = interleave(lambda: stock(**inputs), lambda: ours(**inputs), runs, warmup=2)
    fast = sum("fast" in outcome for row in bertfast.report(ours).rows for outcome in row.calls)
    print(
        f"{name:40} {comparison.stock.p50 * 1e3:8.1f} ms  {comparison.fast.p50 * 1e3:8.1f} ms  {comparison.ratio.p50:5.2f}x "
        f"({comparison.ratio.p20:.2f} to {comparison.ratio.p80:.2f})  {'' if fast else 'torch takes these calls'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="rounds of each line")
    runs = parser.parse_args().runs
    bertfast.register_attention()
    print(f"{'':40} {'sdpa':>11}  {'bertfast':>11}  ratio (20th to 80th percentile), {torch.get_num_threads()} threads")
    torch.manual_seed(0)
    modernbert = ModernBertModel(ModernBertConfig(num_hidden_layers=2, global_attn_every_n_layers=2)).eval()
    vit = ViTModel(ViTConfig(num_hidden_layers=2)).eval()
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for batch, seqlen, padding in TEXT_SHAPES:
            name = f"ModernBERT {kind} {batch}x{seqlen}, {padding:.0%} padding"
            measure(name, modernbert.to(dtype), text(batch, seqlen, padding), runs)
        measure(f"ViT {kind} 8 images", vit.to(dtype), {"pixel_values": torch.randn(8, 3, 224, 224, dtype=dtype)}, runs)


if __name__ == "__main__":
    main()
