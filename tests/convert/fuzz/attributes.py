"""Changes of buffers, attributes and configs: values that stock reads in a call."""

from random import Random

import torch
from torch import nn

from fuzz.subject import NotApplicable, Subject, attention_of, checkpoint_layers, holder_of, layer_of, norm_of


def recycled_positions(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    embeddings.position_ids = embeddings.position_ids % 4 if random.random() < 0.5 else embeddings.position_ids.flip(1)


def positions_in_place(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    embeddings.position_ids = embeddings.position_ids.contiguous()
    embeddings.position_ids[:, 1:] -= 1


def longer_positions(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    size = embeddings.position_embeddings.num_embeddings
    embeddings.position_ids = (torch.arange(size + 20) % size)[None]
    if subject.family.segments:
        embeddings.token_type_ids = torch.zeros(1, size + 20, dtype=torch.long)


def other_segments(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    last = embeddings.token_type_embeddings.num_embeddings - 1
    embeddings.token_type_ids = torch.full_like(embeddings.position_ids, last)


def segments_in_place(subject: Subject, random: Random) -> None:
    embeddings = subject.base.embeddings
    last = embeddings.token_type_embeddings.num_embeddings - 1
    if not hasattr(embeddings, "token_type_ids"):
        raise NotApplicable
    embeddings.token_type_ids[:, ::2] = last


def no_segment_buffer(subject: Subject, random: Random) -> None:
    if "token_type_ids" not in subject.base.embeddings._buffers:
        raise NotApplicable
    del subject.base.embeddings.token_type_ids


def other_padding_index(subject: Subject, random: Random) -> None:
    """What positions are counted from, where they follow the tokens."""
    if not subject.family.positions_follow_tokens:
        raise NotApplicable
    subject.base.embeddings.padding_idx = random.choice((0, 2, 5))


def no_tasks(subject: Subject, random: Random) -> None:
    if "task_type_embeddings" not in subject.base.embeddings._modules:
        raise NotApplicable
    subject.base.embeddings.use_task_id = False


def table_option(subject: Subject, random: Random) -> None:
    tables = [name for name in subject.base.embeddings._modules if name.endswith("embeddings")]
    words = getattr(subject.base.embeddings, random.choice(["word_embeddings", *tables]))
    if not isinstance(words, nn.Embedding):
        raise NotApplicable
    name, value = random.choice(
        (("padding_idx", 3), ("padding_idx", None), ("max_norm", 0.5), ("scale_grad_by_freq", True), ("sparse", True))
    )
    setattr(words, name, value)


def other_eps(subject: Subject, random: Random) -> None:
    norm_of(subject, random)[2].eps = random.choice((0.1, 1e-3))


def other_scaling(subject: Subject, random: Random) -> None:
    attention_of(subject, random).scaling *= 0.5


def attention_attribute(subject: Subject, random: Random) -> None:
    attention = attention_of(subject, random)
    name = random.choice(
        (
            "num_attention_heads",
            "attention_head_size",
            "is_causal",
            "is_decoder",
            "layer_idx",
            "all_head_size",
            "n_heads",
        )
    )
    if not hasattr(attention, name):
        raise NotApplicable
    value = getattr(attention, name)
    if name == "attention_head_size":
        value = value // 2 if value % 2 == 0 else value
    elif isinstance(value, bool):
        value = not value
    else:
        value = (value or 0) + 1
    setattr(attention, name, value)


def layer_attribute(subject: Subject, random: Random) -> None:
    layer = layer_of(subject, random)
    name, value = random.choice(
        (("chunk_size_feed_forward", 1), ("is_decoder", True), ("add_cross_attention", True), ("seq_len_dim", 0))
    )
    # These stand where the method is that is cut into pieces.
    chunked = name in (
        "chunk_size_feed_forward",
        "seq_len_dim",
    )
    setattr(holder_of(subject, random, subject.family.chunk)[0] if chunked else layer, name, value)


def other_rate(subject: Subject, random: Random) -> None:
    dropouts = [m for m in subject.base.modules() if isinstance(m, nn.Dropout)]
    dropouts[random.randrange(len(dropouts))].p = random.choice((0.0, 0.4))


def config_flag(subject: Subject, random: Random) -> None:
    name, value = random.choice(
        (
            ("output_hidden_states", True),
            ("output_attentions", True),
            ("return_dict", False),
            ("is_causal", True),
            ("chunk_size_feed_forward", 2),
            ("tie_last_hidden_states", False),
            ("use_cache", False),
            ("problem_type", "multi_label_classification"),
        )
    )
    setattr(subject.base.config, name, value)


def implementation(subject: Subject, random: Random) -> None:
    subject.base.set_attn_implementation(random.choice(("eager", "sdpa")))


def checkpointing(subject: Subject, random: Random) -> None:
    checkpoint_layers(subject.base, reentrant=random.random() < 0.5)
