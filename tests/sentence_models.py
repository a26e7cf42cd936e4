"""Tiny SentenceTransformers and CrossEncoders of any family, each with a tokenizer of its own."""

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from bertfast.convert.families import FAMILIES

WORDS = 40
SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 32  # tokens of a text
TYPED = ("bert", "electra", "ernie")  # families with token types


def tokenizer_of(config):
    """A word a token, and [PAD] where the family has it."""
    words = [*SPECIAL, *(f"w{number}" for number in range(WORDS))]
    words.insert(config.pad_token_id, "[PAD]")
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, words.index(word)) for word in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    names = ["input_ids", *(["token_type_ids"] if config.model_type in TYPED else []), "attention_mask"]
    known = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=LONGEST, model_input_names=names, mask_token="[MASK]", **known
    )


def save(folder, family="bert", labels=None, **options):
    """A checkpoint of random weights; with a classification head where a number of labels is given."""
    config = FAMILIES[family].tiny(
        vocab_size=WORDS + len(SPECIAL) + 1, initializer_range=0.2, max_position_embeddings=LONGEST + 2, **options
    )
    torch.manual_seed(3)
    if labels is not None:
        config.num_labels = labels
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    else:
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer_of(config).save_pretrained(folder)
    return str(folder)


def encoder(folder, pooling="mean", *, include_prompt=True, normalize=False, **options):
    first = Transformer(folder)
    modules = [first, Pooling(first.get_embedding_dimension(), pooling, include_prompt=include_prompt)]
    modules += [Normalize()] if normalize else []
    return SentenceTransformer(modules=modules, device="cpu", **options)


def cross_encoder(folder, **options):
    return CrossEncoder(folder, device="cpu", **options)


def texts(count, longest=LONGEST + 8, seed=5):
    """Of 0 to `longest` words, so that a few are empty and a few are cut."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest + 1, count)
    return [" ".join(f"w{number}" for number in generator.integers(0, WORDS, length)) for length in lengths]


def pairs(count):
    return list(zip(texts(count, 20, seed=6), texts(count, 20, seed=7), strict=True))
