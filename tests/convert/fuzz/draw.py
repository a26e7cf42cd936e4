"""A case out of one integer seed. Plain data: what it prints is all that it is."""

from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Any

from bertfast.convert.families import FAMILIES
from bertfast.convert.families.record import Family
from fuzz.family import has_kink, head_of, heads_of, kind

FAMILY_WEIGHTS = {name: 3 if name == "bert" else 1 for name in FAMILIES}
NESTS = ("wrapped", "tower", "contextual words")
MASKS = {
    "absent": 3,
    "ones": 2,
    "right": 7,
    "left": 3,
    "holes": 3,
    "an empty row": 2,
    "all padding": 1,
    "odd floats": 1,
    "3-D": 0.4,
    "4-D keys": 1,
    "4-D bool": 1,
    "4-D float": 1.5,
    "4-D causal": 1,
    "too wide": 0.4,
    "too narrow": 0.4,
    "1-D": 0.3,
}
MODES = {"no_grad": 6, "inference": 3, "grad": 4, "train": 6, "train no_grad": 1}
PADDINGS = ("absent", "ones", "right", "left", "holes", "an empty row")
CAPTURED = 0.25  # of all cases
RARE: dict[str, tuple[Any, ...]] = {  # of a config
    "chunk_size_feed_forward": (1, 3),
    "return_dict": (False,),
    "output_hidden_states": (True,),
    "output_attentions": (True,),
    "problem_type": ("regression", "single_label_classification", "multi_label_classification"),
    "classifier_dropout": (0.0, 0.2),
    "tie_word_embeddings": (False,),
    "is_decoder": (True,),
    "is_causal": (True,),
}
AROUND = {"reentrant": 3, "functional_call": 2, "func.grad": 1, "jvp": 1, "vmap": 1}


@dataclass(frozen=True)
class Call:
    """One call and what is changed before it; names are those of `build` and `changes`."""

    changes: tuple[str, ...] = ()
    mode: str = "no_grad"
    around: str = "plain"
    checkpoint: str = ""
    autocast: str = ""
    monte_carlo: bool = False
    batch: int = 3
    length: int = 9
    mask: str = "right"
    mask_dtype: str = "int64"
    ids: str = "int64"
    segments: str = "absent"
    tasks: str = "absent"
    positions: str = "absent"
    labels: str = "absent"
    positional: bool = False
    prefix: bool = False
    objective: str = "all"
    rehearsals: int = 0  # calls with other ids before the one that is compared
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        changed = ((f.name, getattr(self, f.name)) for f in fields(self))
        return f"Call({', '.join(f'{n}={v!r}' for n, v in changed if v not in ('', (), {}, 'absent', False))})"


@dataclass(frozen=True)
class Case:
    seed: int
    family: str
    head: str
    nest: str
    config: dict[str, Any]
    spread: float  # the standard deviation of the weights, times the root of the hidden size
    dtype: str
    optimize: dict[str, Any]
    calls: tuple[Call, ...]
    captured: bool = False  # on the CPU as on a GPU: inference calls are captured and replayed

    def __str__(self) -> str:
        nest = f" in {self.nest}" if self.nest else ""
        lines = [
            f"case {self.seed}: {self.family}, {self.head}{nest}, {self.dtype}, optimize({self.optimize})"
            + ", captured" * self.captured
        ]
        lines += [f"  config {self.config}, spread {self.spread}"]
        return "\n".join(lines + [f"  {i}: {call}" for i, call in enumerate(self.calls)])


def _pick(random: Random, weights: dict[Any, float]) -> Any:
    return random.choices(list(weights), list(weights.values()))[0]


def _config(random: Random, family: Family) -> dict[str, Any]:
    size = random.choice((8, 16, 16, 20, 32, 32, 64, 96, 12, 1))
    # Over fewer than eight numbers a layer norm is so ill-conditioned that nobody's rounding means anything.
    heads = random.choice([n for n in (1, 1, 2, 2, 3, 4, 8) if 8 <= n * size <= 192])
    hidden = size * heads
    config: dict[str, Any] = {
        "num_hidden_layers": _pick(random, {0: 0.5, 1: 4, 2: 5, 3: 2}),
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": random.choice((4 * hidden, 2 * hidden, 16, 37, 64)),
        "hidden_act": _pick(random, {"gelu": 8, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 1, "silu": 0.5}),
        "vocab_size": random.choice((31, 60, 99)),
        "max_position_embeddings": random.choice((16, 24, 40)),
        "type_vocab_size": random.choice((1, 2, 2, 2, 3)),
        "pad_token_id": _pick(random, {0: 6, None: 2, 5: 2}),
        "layer_norm_eps": _pick(random, {1e-12: 5, 1e-5: 2, 1e-3: 1}),
        "num_labels": random.choice((1, 2, 3, 5)),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "attn_implementation": _pick(random, {"sdpa": 2, "eager": 1}),
    }
    if random.random() < 0.3:
        hidden_p, attention_p = random.choice(((0.1, 0.1), (0.1, 0.1), (0.1, 0.0), (0.0, 0.1), (0.5, 0.3)))
        config |= {"hidden_dropout_prob": hidden_p, "attention_probs_dropout_prob": attention_p}
    for name, values in RARE.items():
        if random.random() < (0.015 if name == "is_causal" else 0.05):
            config[name] = random.choice(values)
    if config.get("output_attentions"):  # what transformers' own check of a config asks for
        config["attn_implementation"] = "eager"
    if config.get("problem_type") == "single_label_classification":
        config["num_labels"] = max(config["num_labels"], 2)
    if config.get("is_decoder") and random.random() < 0.5:
        config["add_cross_attention"] = True
    return config | own_options(random, family, config)


def own_options(random: Random, family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """What a family's config has besides, or otherwise."""
    own: dict[str, Any] = {}
    if family.positions_follow_tokens:
        padding = 1 if family.name == "mpnet" else _pick(random, {1: 6, 0: 1, 5: 2, None: 0.2})
        own = {"pad_token_id": padding, "max_position_embeddings": config["max_position_embeddings"] + 2}
    if family.tasks and random.random() < 0.6:
        own |= {"use_task_id": True, "task_type_vocab_size": random.choice((1, 3))}
    if family.projection is not None:
        width = _pick(random, {config["hidden_size"]: 1, 16: 1, 24: 1})
        kinds = {"first": 4, "last": 1, "mean": 1}
        own = {"embedding_size": width, "summary_type": _pick(random, kinds), "summary_last_dropout": 0.0}
    if family.name == "distilbert":
        own["sinusoidal_pos_embds"] = random.random() < 0.2
    if family.trial_attention == "eager":  # the only one that stock has
        own["attn_implementation"] = "eager"
    return own


def _options(random: Random, head: str) -> dict[str, Any]:
    rare = {
        "return_dict": (True, False, None),
        "output_hidden_states": (True, True, False, None),
        "output_attentions": (True, False),
        "use_cache": (True, False),
        "num_items_in_batch": (4,),
        "unheard_of": (1, None, "text"),
        "is_causal": (True, False),
    }
    options = {name: random.choice(values) for name, values in rare.items() if random.random() < 0.05}
    if random.random() < 0.7:
        options.pop("is_causal", None)
    if kind(head) == "CausalLM" and random.random() < 0.2:
        options["logits_to_keep"] = random.choice((1, 2))
    return options


def _call(
    random: Random,
    family: Family,
    head: str,
    config: dict[str, Any],
    changes: dict[str, float],
    first: bool,
    shared: bool,
) -> Call:
    count = _pick(random, {0: 6, 1: 3, 2: 0.6} if first else {0: 1, 1: 5, 2: 2})
    mode = _pick(random, MODES)
    batch, length = random.randint(1, 4), _pick(random, {1: 1, random.randint(2, 14): 10})
    if random.random() < 0.015:
        batch = 0
    if random.random() < 0.015:
        length = config["max_position_embeddings"] + 2
    around = _pick(random, AROUND) if random.random() < 0.1 else "plain"
    if shared and around != "reentrant":  # torch's functional_call leaves its tensors in modules that are there twice
        around = "plain"
    training = mode == "train"
    smooth = not has_kink(family, head, config["hidden_act"])
    return Call(
        changes=tuple(_pick(random, changes) for _ in range(count)),
        mode="train" if around == "reentrant" else mode,
        around=around,
        checkpoint=random.choice(("reentrant", "not reentrant")) if training and random.random() < 0.15 else "",
        autocast=random.choice(("bfloat16", "bfloat16", "float16")) if random.random() < 0.08 and smooth else "",
        monte_carlo=random.random() < 0.05,
        batch=batch,
        length=length,
        mask=_pick(random, MASKS),
        mask_dtype=_pick(random, {"int64": 6, "bool": 2, "int32": 1, "int8": 0.5, "float32": 1}),
        ids=_pick(
            random,
            {"int64": 20, "int32": 2, "embeds": 1.5, "out of range": 0.4, "both": 0.2, "neither": 0.2, "negative": 0.2},
        ),
        segments=_pick(random, {"absent": 4, "random": 6, "int32": 0.5, "out of range": 0.15, "one row": 0.3}),
        tasks=_pick(random, {"absent": 2, "random": 4, "int32": 0.5, "out of range": 0.3})
        if family.tasks
        else "absent",
        positions=_pick(random, {"absent": 10, "random": 1, "one row": 1, "int32": 0.3, "out of range": 0.15}),
        labels=_pick(random, {"absent": 4, "normal": 8, "all ignored": 0.7, "at padding": 0.5, "out of range": 0.2}),
        positional=random.random() < 0.15,
        prefix=random.random() < 0.015,
        objective=_pick(random, {"all": 1, "loss": 1}),
        options=_options(random, head),
    )


def draw(seed: int, changes: dict[str, float]) -> Case:
    """The case of `seed`; `changes` has the names and weights of what may be done to a model before a call."""
    random = Random(seed)
    family = FAMILIES[_pick(random, FAMILY_WEIGHTS)]
    usual = [head_of(family, "Model"), head_of(family, "SequenceClassification")]
    head = random.choice(heads_of(family) if random.random() < 0.75 else usual)
    config = _config(random, family)
    if kind(head) == "QuestionAnswering":
        config["num_labels"] = 2
    dtype = _pick(random, {"float32": 12, "bfloat16": 5, "float16": 1, "float64": 1})
    if dtype in ("bfloat16", "float16"):
        config["hidden_act"] = config["hidden_act"].replace("relu", "silu")
        dtype = "float32" if has_kink(family, head, config["hidden_act"]) else dtype
    options: dict[str, Any] = {}
    if random.random() < 0.1:
        options["unpad"] = False
    if random.random() < 0.15:
        options["prepack"] = False
    masked = getattr(family.module, head, None) in family.masked_heads
    if masked and not config.get("is_decoder") and random.random() < 0.6:
        options["masked_head"] = True
    nest = random.choice(NESTS) if random.random() < 0.1 else ""
    if nest == "contextual words" and config.get("embedding_size", config["hidden_size"]) != config["hidden_size"]:
        nest = "wrapped"
    calls = [
        _call(random, family, head, config, changes, first=i == 0, shared=nest == "tower")
        for i in range(_pick(random, {1: 3, 2: 4, 3: 2, 4: 1}))
    ]
    captured = random.random() < CAPTURED
    if captured:
        calls = _repeating(random, calls)
        if random.random() < 0.7:
            config = _ordinary(random, config)
            dtype = dtype if dtype == "bfloat16" else "float32"
            options.pop("unpad", None)
        if random.random() < 0.2:
            options["max_graphs"] = random.choice((0, 1, 2))
    return Case(
        seed=seed,
        family=family.name,
        head=head,
        nest=nest,
        config=config,
        spread=random.choice((0.5, 1.0, 1.0, 2.0)),
        dtype=dtype,
        optimize=options,
        calls=tuple(calls),
        captured=captured,
    )


def _repeating(random: Random, calls: list[Call]) -> list[Call]:
    """The same calls so that sizes come again: most of them inference of the first one's size, each after up to two others, with
    little that a whole call does not take."""
    first, repeated = calls[0], []
    for call in calls:
        changed: dict[str, Any] = {"rehearsals": _pick(random, {0: 1, 1: 2, 2: 3} if repeated else {1: 1, 2: 5})}
        if random.random() < 0.8:
            changed["mode"] = _pick(random, {"no_grad": 2, "inference": 1})
        if random.random() < 0.8:
            changed |= {"batch": first.batch, "length": first.length}
        if random.random() < 0.8:
            mask = first.mask if first.mask in PADDINGS and random.random() < 0.6 else random.choice(PADDINGS)
            changed |= {"mask": mask, "segments": first.segments}
        if random.random() < 0.8:
            autocast = "bfloat16" if call.autocast else ""
            changed |= {"options": {}, "around": "plain", "monte_carlo": False, "autocast": autocast}
        if call.ids in ("embeds", "both", "neither"):
            changed["ids"] = "int64"
        repeated.append(replace(call, **changed))
    return repeated


def _ordinary(random: Random, config: dict[str, Any]) -> dict[str, Any]:
    """The config without what keeps every call of a model from being whole."""
    config = {name: value for name, value in config.items() if name not in (*RARE, "add_cross_attention")}
    act = config["hidden_act"] if config["hidden_act"].startswith("gelu") else "gelu"
    layers = max(1, config["num_hidden_layers"])
    dropout = 0.1 if random.random() < 0.3 else 0.0  # off in evaluation
    return config | {"hidden_act": act, "num_hidden_layers": layers, "hidden_dropout_prob": dropout}
