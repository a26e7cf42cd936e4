"""What the tests of all families share: tiny models of every head, batches with labels, and what a call of one made of them."""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bertfast
from bertfast.convert.biased_encoder import FastBiasedEncoder
from bertfast.convert.families import FAMILIES
from bertfast.convert.families.record import Family
from bertfast.testing import assert_within_budget, rms_error, rounding_step

BATCH, SEQLEN, LABELS = 8, 12, 3
LENGTHS = {"right": (12, 9, 10, 7), "left": (12, 9, 10, 7), "packed": (1, 12, 2, 3)}
BATCHES = ("no mask", *LENGTHS)
HEADS = [(name, head) for name, family in FAMILIES.items() for head in family.head_names]
UNPADDED = "fast, padding removed"
WHOLE = "fast, from ids to hidden states"
FIRST_ALONE = "asked for the first tokens of the last layer alone"
RELATIVE = "its layers need relative positions"
NOT_IN_TRAINING = "gradients are enabled, and the bias of relative positions would get none"
LOSS_OVER_PADDING = "the loss of this head runs over padding too"
FIRST_IS_PADDING = "the pooler reads position 0, which is padding in some sequence"


Results = dict[str, Tensor | None]


class Models(NamedTuple):
    """One model three times, with the same weights: as it is, optimised, and in float64, which is the oracle."""

    stock: Any
    fast: Any
    oracle: Any


def kind_of(head: str) -> str:
    """What a head is, whatever its family: "MaskedLM", "SequenceClassification", ...; "Model" of a base model."""
    return head.rpartition("For")[2] if "For" in head else "CausalLM" if head.endswith("LMHeadModel") else "Model"


def models_of(
    family: Family, head: str, dtype: torch.dtype = torch.float32, options: dict[str, Any] | None = None, **config: Any
) -> Models:
    """Weights are so large that attention is far from uniform, so that a wrong mask or scale shows; `options` are optimize()'s."""
    torch.manual_seed(1)
    labels = {"num_labels": 2 if kind_of(head) == "QuestionAnswering" else LABELS}
    stock = getattr(family.module, head)(family.tiny(**{"initializer_range": 0.2, **labels, **config})).to(dtype).eval()
    for parameter in stock.parameters():  # biases begin at zero, where a lost one would not show
        if parameter.dim() == 1 and parameter.requires_grad:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    if hasattr(
        stock, "pre_classifier"
    ):  # before a ReLU, at whose kink a last digit would decide about a unit's whole gradient
        bias = stock.pre_classifier.bias.data
        bias.copy_(torch.arange(len(bias)).remainder(2) * 12 - 6)
    return Models(stock, bertfast.optimize(copy.deepcopy(stock), **(options or {})), copy.deepcopy(stock).double())


def real_of(batch: str) -> Tensor:
    """The tokens [B, S] that are no padding."""
    lengths = torch.tensor(LENGTHS.get(batch, (SEQLEN,))).repeat(BATCH)[:BATCH]
    right = torch.arange(SEQLEN) < lengths[:, None]
    return right.flip(1) if batch == "left" else right


def inputs_of(family: Family, head: str, batch: str) -> dict[str, Tensor]:
    """Ids, mask, token types where the family has them, and labels, which ignore padding as every data collator's do."""
    generator = torch.Generator().manual_seed(2)
    real, config = real_of(batch), family.tiny()

    def below(size: int, *shape: int) -> Tensor:
        return torch.randint(0, size, shape, generator=generator)

    ids = below(config.vocab_size - 2, BATCH, SEQLEN) + 2  # neither of the ids that families have for padding
    inputs = {"input_ids": ids.masked_fill(~real, config.pad_token_id or 0)}
    if batch != "no mask":
        inputs["attention_mask"] = real.long()
    if family.segments:
        inputs["token_type_ids"] = below(config.type_vocab_size, BATCH, SEQLEN)
    kind = kind_of(head)
    if kind == "MultipleChoice":
        inputs = {name: value.view(BATCH // 2, 2, SEQLEN) for name, value in inputs.items()}
        return inputs | {"labels": below(2, BATCH // 2)}
    if kind == "QuestionAnswering":
        first = real.int().argmax(1)
        return inputs | {"start_positions": first, "end_positions": first + real.sum(1) // 2}
    if kind == "PreTraining" and head.startswith("Electra"):
        return inputs | {"labels": below(2, BATCH, SEQLEN)}
    sizes = {"MaskedLM": config.vocab_size, "CausalLM": config.vocab_size, "PreTraining": config.vocab_size}
    if kind in sizes or kind == "TokenClassification":
        inputs["labels"] = below(sizes.get(kind, LABELS), BATCH, SEQLEN).masked_fill(~real, -100)
    if kind == "PreTraining":
        inputs["next_sentence_label"] = below(2, BATCH)
    if kind in ("SequenceClassification", "NextSentencePrediction"):
        inputs["labels"] = below(2, BATCH)
    return inputs


def at_tokens(value: Tensor, real: Tensor) -> Tensor:
    """Of what has an entry a token, those of real tokens."""
    return value[real] if value.dim() >= 2 and value.shape[:2] == real.shape else value


def tensors_of(outputs: Any, real: Tensor) -> dict[str, Tensor]:
    """Every output tensor at real tokens, by its name; those of a tuple by their places in it too."""
    tensors: dict[str, Tensor] = {}
    for name, value in outputs.items():
        if isinstance(value, tuple):
            tensors |= {f"{name}[{i}]": at_tokens(each, real) for i, each in enumerate(value)}
        elif isinstance(value, Tensor):
            tensors[name] = at_tokens(value, real)
    return tensors


def loss_of(tensors: dict[str, Tensor]) -> Tensor:
    """The model's own loss; of a base model, a fixed random projection of all that it returns."""
    if "loss" in tensors:
        return tensors["loss"]
    generator = torch.Generator().manual_seed(5)
    return sum((v * torch.randn(v.shape, generator=generator).to(v.dtype)).mean() for v in tensors.values())


def call(model: Any, inputs: dict[str, Tensor], real: Tensor, train: bool) -> Results:
    """What a call gives: outputs at real tokens, and in training "gradient of x" for every parameter, None where it has none."""
    model.train(train)
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(train):
        tensors = tensors_of(model(**inputs), real)
    if not train:
        return dict(tensors)
    loss_of(tensors).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {name: value.detach() for name, value in tensors.items()} | gradients


class Errors:
    """What ours, stock and the oracle gave in several calls, judged together: of a few numbers stock's error may be nearly none, by
    luck. All gradients are one number for the same reason.

    dtype: of the models.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.triples: dict[str, list[list[Tensor]]] = defaultdict(list)

    def add(self, ours: Results, stock: Results, exact: Results, left_out: Iterable[str] = ()) -> None:
        """The results of one call of each; an error where they are not of the same things."""
        assert ours.keys() == stock.keys() == exact.keys()
        # The same parameters must have gradients: DistributedDataParallel counts them.
        assert [n for n, v in ours.items() if v is None] == [n for n, v in stock.items() if v is None]
        for name, value in exact.items():
            one, other = ours[name], stock[name]
            if value is None or one is None or other is None or name in left_out:
                continue
            assert one.dtype == other.dtype, f"{name} is {one.dtype}, stock's {other.dtype}"
            group = "all gradients" if name.startswith("gradient") else name
            self.triples[group].append([tensor.detach().flatten() for tensor in (one, other, value)])

    def assert_within_budget(self, when: str) -> None:
        assert self.triples
        for name, triples in self.triples.items():
            ours, stock, exact = (torch.cat(tensors) for tensors in zip(*triples, strict=True))
            if name != "loss":
                assert_within_budget(ours, stock, exact, f"{name} in {when}", rms_error)
                continue
            # Single numbers, which stock may hit exactly: they get a few rounding steps of their own.
            error, eager = ((side.double() - exact).abs() for side in (ours, stock))
            budget = 2 * eager + 8 * rounding_step(self.dtype) * exact.abs()
            assert bool((error <= budget).all()), f"losses in {when}: {ours.tolist()}, exact {exact.tolist()}"


def compare(models: Models, inputs: dict[str, Tensor], real: Tensor, left_out: Iterable[str] = ()) -> None:
    """One call in inference and one in training, ours beside stock."""
    for train in (False, True):
        errors = Errors()
        results = [call(model, inputs, real, train) for model in (models.fast, models.stock, models.oracle)]
        errors.add(*results, left_out=left_out)
        errors.assert_within_budget("training" if train else "inference")


def calls_of(model: nn.Module) -> dict[str, Counter[str]]:
    """By stock class, what the calls of the swapped modules did, as report() says it."""
    calls: dict[str, Counter[str]] = {}
    for row in bertfast.report(model).to_dict()["modules"]:
        calls.setdefault(row["kind"], Counter()).update(row["calls"])
    return calls


def has_relative_positions(family: Family) -> bool:
    """Whether its layers are given a bias of relative positions, which training and whole calls leave to stock."""
    return issubclass(family.encoder_role, FastBiasedEncoder)


def kept_padded(family: Family, model: nn.Module, batch: str, train: bool) -> str | None:
    """The reason for which a call must stay padded, by what README and docs say; None where padding is to be removed."""
    base, stock = model.base_model, getattr(family.module, type(model).__name__)
    if train and stock in family.losses_over_padding:
        return LOSS_OVER_PADDING
    if has_relative_positions(family) and train:
        return NOT_IN_TRAINING
    reads_first = getattr(base, "pooler", None) is not None or stock in (
        *family.first_token_heads,
        *family.summary_heads,
    )
    return FIRST_IS_PADDING if batch == "left" and reads_first else None
