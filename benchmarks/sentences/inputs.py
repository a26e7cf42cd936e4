"""Real texts and pairs from the files that a user names, and the checkpoints that all sides load."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from bertfast.bench.cases import BenchError, minilm_folder
from bertfast.data.sentences import split_sentences

SHIPPED = Path(__file__).parents[2] / "bertfast" / "bench" / "data" / "sentences.txt"


def spread(items: list, count: int) -> list:
    """`count` items, or all of them, at even distances through the whole file."""
    if len(items) <= count:
        return items
    return [items[place] for place in np.linspace(0, len(items) - 1, count).astype(int)]


def sentences(path: Path, count: int) -> list[str]:
    """Of a TSV file the first column; of SQuAD's JSON questions and the sentences of paragraphs; else the sentences of all lines.

    Raises:
        BenchError: where the file is absent or holds no sentence.
    """
    if not path.is_file():
        raise BenchError(f"there is no file {path}: name a .txt, .tsv or SQuAD .json file of real text")
    if path.suffix == ".json":
        texts = [text for question, context in squad(path) for text in (question, context)]
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [line.split("\t")[0] for line in lines] if path.suffix == ".tsv" else lines
    if path.suffix != ".tsv":
        texts = [sentence for text in dict.fromkeys(texts) for sentence in split_sentences(text)]
    sentences = [text.strip() for text in texts if text.strip() and not text.strip().startswith("=")]  # "= Title ="
    if not sentences:
        raise BenchError(f"{path} holds no sentences")
    return spread(sentences, count)


def squad(path: Path) -> list[tuple[str, str]]:
    """Question and paragraph, each of a SQuAD file."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return [(question["question"], paragraph["context"]) for paragraph in paragraphs for question in paragraph["qas"]]


def pairs(path: Path, count: int) -> list[tuple[str, str]]:
    """Questions with their paragraphs of a SQuAD file; of any other each sentence with the one that follows it."""
    if path.suffix == ".json":
        return spread(squad(path), count)
    texts = sentences(path, 10**9)
    return spread(list(pairwise(texts)), count)


def checkpoints(folder: Path) -> dict[str, str]:
    """Folders by task: the real MiniLM, and for pairs its encoder under a classification head of random weights, since no real
    cross-encoder can be had without a network. Its speed is a trained one's; its scores mean nothing.
    """
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    source = minilm_folder()
    head = folder / "cross_encoder"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source, num_labels=1)
    BertForSequenceClassification.from_pretrained(source, config=config).save_pretrained(head)
    AutoTokenizer.from_pretrained(source, model_max_length=config.max_position_embeddings).save_pretrained(head)
    return {"encode": str(source), "predict": str(head)}
