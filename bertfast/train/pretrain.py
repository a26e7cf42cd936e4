"""Pre-training: masked words and next sentences from a corpus (Devlin et al., 2018, 3.1), evaluated on one that is held out."""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.data.batches import Batch
from bertfast.data.corpus import Corpus, corpus_tokenizer
from bertfast.data.loader import PretrainLoader
from bertfast.data.masking import MaskOptions
from bertfast.data.pairs import PairOptions
from bertfast.data.plan import PretrainDataOptions
from bertfast.data.remarks import pairs_remark
from bertfast.data.tokenizer import VOCABULARY_FILES, Tokenizer, load_tokenizer
from bertfast.models import BertConfig, BertForMaskedLM, BertForPreTraining
from bertfast.models.flops import training_flops
from bertfast.train.errors import ConfigError
from bertfast.train.launcher import is_main
from bertfast.train.loop import Outcome, train
from bertfast.train.pretrain_config import DataOptions, ModelOptions, PretrainConfig
from bertfast.train.run_folder import check_out
from bertfast.train.task import Task, Term, save_description

# Of held-out pairs and masks, whatever the run's own: so that every evaluation of every run sees the same.
_EVAL_SEED = 20181011


def batch_options(options: DataOptions, seed: int) -> PretrainDataOptions:
    """What the loader takes."""
    return PretrainDataOptions(
        seed=seed,
        token_budget=options.token_budget,
        pairs=PairOptions(options.max_seq_length, options.short_seq_prob, options.nsp),
        masks=MaskOptions(options.mask_prob, options.max_predictions, whole_word=options.whole_word),
        layout="padded" if options.layout == "padded" else "packed",
    )


# BertConfig's name of each size in ModelOptions.
_SIZES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "positions": "max_position_embeddings",
}
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def build_model(
    options: ModelOptions, nsp: bool, tokenizer: Tokenizer, seed: int
) -> BertForPreTraining | BertForMaskedLM:
    """A model from scratch, its weights drawn from `seed`, or from `options.init`.

    ConfigError: sizes that do not fit, a checkpoint of other sizes than were asked for or of another vocabulary.
    """
    kind = BertForPreTraining if nsp else BertForMaskedLM
    sizes = {theirs: getattr(options, ours) for ours, theirs in _SIZES.items() if getattr(options, ours) is not None}
    rates: dict[str, Any] = dict.fromkeys(_RATES, options.dropout) if options.dropout is not None else {}
    with torch.random.fork_rng(devices=[]):  # a head that a checkpoint lacks is drawn from torch's own generator
        torch.manual_seed(seed)
        if options.init is not None:
            stored = BertConfig.from_pretrained(options.init)
            _check_vocabulary(Path(options.init), stored.vocab_size, tokenizer)
            if differing := [
                f"{name} {getattr(stored, name)}" for name in sizes if getattr(stored, name) != sizes[name]
            ]:
                raise ConfigError(
                    f"{options.init} has {', '.join(differing)}, and model options ask for another size: with init the "
                    f"sizes are the checkpoint's; leave out {', '.join(_SIZES)}"
                )
            # Whatever the stored precision is: weights that are trained are float32.
            return kind.from_pretrained(options.init, dtype=torch.float32, **rates)
        width = {"intermediate_size": 4 * options.hidden} if options.hidden is not None else {}
        return kind(
            BertConfig(vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id, **(width | sizes | rates))
        )


def _check_vocabulary(folder: Path, words: int, tokenizer: Tokenizer) -> None:
    """ConfigError where a checkpoint's words are not the corpus's."""
    advice = f"they do not belong together; build the corpus with --tokenizer {folder}"
    if any((folder / name).is_file() for name in VOCABULARY_FILES):
        if load_tokenizer(folder).sha256 != tokenizer.sha256:
            raise ConfigError(f"{folder} has another tokenizer than the corpus was built with: {advice}")
        known = words >= tokenizer.vocab_size  # a word table may be padded
    else:
        known, advice = words == tokenizer.vocab_size, "build the corpus with the checkpoint's own tokenizer"
    if not known:
        raise ConfigError(f"{folder} has {words} words and the corpus's tokenizer {tokenizer.vocab_size}: {advice}")


def _as_built(options: ModelOptions, sizes: BertConfig) -> ModelOptions:
    """`options` with the model's own sizes; a checkpoint's two dropout rates are named only where they are one."""
    rates = {getattr(sizes, name) for name in _RATES}
    found: dict[str, Any] = {ours: getattr(sizes, theirs) for ours, theirs in _SIZES.items()}
    return dataclasses.replace(options, dropout=rates.pop() if len(rates) == 1 else None, **found)


class PretrainTask(Task):
    """BertForPreTraining, or BertForMaskedLM where next-sentence prediction is off, on a corpus."""

    def __init__(self, config: PretrainConfig) -> None:
        self.name = "pretrain"
        # Batches that cannot be made are refused here, before there is a folder of a run.
        self.options = batch_options(config.data, config.train.seed)
        self.corpus = Corpus.open(config.corpus)
        self.held_out = Corpus.open(config.eval) if config.eval else None
        self.tokenizer = corpus_tokenizer(self.corpus)
        self._check_held_out(config)
        model = build_model(config.model, config.data.nsp, self.tokenizer, config.train.seed)
        self.model, self.sizes = model.train(), model.config
        sizes = self.sizes
        self.config = dataclasses.replace(config, model=_as_built(config.model, sizes))
        if config.data.max_seq_length > sizes.max_position_embeddings:
            raise ConfigError(
                f"data.max_seq_length is {config.data.max_seq_length}, the model has {sizes.max_position_embeddings} "
                "positions; lower the one or raise model.positions"
            )

    def _check_held_out(self, config: PretrainConfig) -> None:
        if self.held_out is None:
            return
        wanted, found = (corpus.manifest["tokenizer"]["sha256"] for corpus in (self.corpus, self.held_out))
        if wanted != found:
            raise ConfigError(
                f"{config.eval} was built with another tokenizer than {config.corpus}; build it again with "
                f"--tokenizer {Path(config.corpus) / 'tokenizer'}"
            )

    def tell_of_pairs(self) -> None:
        """Warns where the pairs that will be drawn are far from half IsNext, so that accuracy says little.

        The loader tells of a corpus with a single document.
        """
        measured = {self.config.corpus: (self.corpus, self.options.seed)}
        if self.held_out is not None and self.config.eval is not None:
            measured[self.config.eval] = (self.held_out, _EVAL_SEED)
        for folder, (corpus, seed) in measured.items():
            if corpus.documents > 1 and (remark := pairs_remark(corpus, self.options.pairs, seed)):
                warnings.warn(f"{folder}: {remark}", stacklevel=2)

    def loader(self, rank: int, ranks: int) -> PretrainLoader:
        pinned, workers = self._device().type == "cuda", self.config.data.workers
        return PretrainLoader(self.corpus, self.tokenizer, self.options, rank, ranks, workers, pin_memory=pinned)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def terms(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        out = model(**batch.inputs())
        if not self.config.data.nsp:
            return {"mlm": Term(out.loss, out.mlm_correct)}
        return {"mlm": Term(out.mlm_loss, out.mlm_correct), "nsp": Term(out.nsp_loss, out.nsp_correct)}

    def save(self, folder: Path) -> None:
        save_description(self.model, self.tokenizer, folder)

    def train_flops(self, tokens: int, squared_lengths: int, targets: dict[str, int]) -> float:
        return training_flops(self.sizes, tokens, squared_lengths, targets["mlm"])

    def _held_out_batches(self) -> Iterator[Batch]:
        assert self.held_out is not None
        options = dataclasses.replace(batch_options(self.config.data, _EVAL_SEED), static_shapes=False)
        pinned = self._device().type == "cuda"
        loader = PretrainLoader(self.held_out, self.tokenizer, options, pin_memory=pinned)
        limit = self.config.eval_batches or math.inf
        for number, batch in enumerate(loader, 1):
            yield batch
            if loader.epoch >= 1 or number >= limit:
                return

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Masked-LM loss (nats a masked token), its perplexity and accuracy, next-sentence loss and accuracy.

        Pairs and masks are the same in every evaluation. Sums are kept on the device and read once, at the end.
        """
        if self.held_out is None:
            return {}
        device = self._device()
        sums: dict[str, Tensor] = {}  # of each term: loss times targets, right answers
        count: dict[str, int] = {}
        for batch in self._held_out_batches():
            for name, term in self.terms(model, batch.to(device, non_blocking=True)).items():
                mean, targets = term.mean.double(), batch.counts[name]
                right = torch.zeros_like(mean) if term.correct is None else term.correct.double()
                added = torch.stack((mean * targets, right))
                sums[name] = sums[name] + added if name in sums else added
                count[name] = count.get(name, 0) + targets
        read = dict(zip(sums, torch.stack(tuple(sums.values())).tolist(), strict=True))
        found = {f"{name}_loss": loss / max(1, count[name]) for name, (loss, _) in read.items()}
        found |= {f"{name}_accuracy": right / max(1, count[name]) for name, (_, right) in read.items()}
        return found | {"mlm_perplexity": math.exp(min(found["mlm_loss"], 700.0))}


def pretrain(config: PretrainConfig, resume: bool = False) -> Outcome:
    """Pre-train as configured; under torchrun on every rank. Errors as `loop.train`, CorpusError, TokenizerError."""
    run = Path(config.out)
    if is_main():
        check_out(run, resume)
    task = PretrainTask(config)
    if is_main():
        task.tell_of_pairs()
    return train(task, config.train, run, record=task.config, resume=resume)
