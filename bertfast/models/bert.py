"""BertModel and what all models share: configuration, initial weights, loading and saving, gradient checkpointing.

Everything inside is packed: rows of real tokens and where sequences begin (`tokens`). Heads call `BertModel.encode`, which
computes the last layer for those rows alone that they read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bertfast.graphs import Limits
from bertfast.graphs.encode import Encoder
from bertfast.graphs.stack import run
from bertfast.models import loading, saving
from bertfast.models.config import BertConfig
from bertfast.models.inference import encoder_of
from bertfast.models.outputs import BertModelOutput
from bertfast.nn import BertEmbeddings, BertEncoder, device, fp8_state
from bertfast.nn.fp8_state import Recipe
from bertfast.nn.plain import untouched
from bertfast.nn.through import Layers
from bertfast.nn.tokens import Tokens, arrange
from bertfast.nn.training import Trained


@torch.no_grad()
def initialise(module: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """BERT's initial weights (Devlin et al., 2018): normal of `std`; biases, and the padding word's row, zero; norms 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.weight.fill_(1.0)
            part.bias.zero_()
        elif isinstance(part, (nn.Linear, nn.Embedding)):
            part.weight.normal_(0.0, std, generator=generator)
            if isinstance(part, nn.Linear) and part.bias is not None:
                part.bias.zero_()
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx].zero_()
        else:
            for own in part.parameters(recurse=False):  # the masked-LM head's bias
                own.zero_()


class BertPreTrainedModel(nn.Module):
    """The base of all models.

    Attributes:
        config: a copy of the one that the model was made from.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config.replace()

    @property
    def base(self) -> "BertModel":
        """The BertModel inside, or this one."""
        return self if isinstance(self, BertModel) else self.get_submodule("bert")  # type: ignore[return-value]

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        *,
        replace_head: bool = False,
        head_rows: Sequence[int] | None = None,
        **overrides: Any,
    ) -> Self:
        """The model of a checkpoint's folder in the Hugging Face format, in evaluation mode.

        A checkpoint of any head, or of none, loads into any model. Weights of a head (and pooler) that it lacks are
        initialised from torch's default generator and named in one `NewWeightsWarning`.

        Args:
            folder: holds config.json and model.safetensors, or the latter in shards with model.safetensors.index.json.
            dtype: of all parameters; that of the stored word table where it is None.
            replace_head: treat a stored head of another shape, such as one for other labels, as one that is lacking.
            head_rows: outputs of a stored classifier that become this model's, in their order; an empty sequence for a
                new one. All, in their own order, where it is None.
            overrides: options of `BertConfig` in place of the stored ones, such as `num_labels` or `id2label`.

        Raises:
            FileNotFoundError: where a file is missing.
            ConfigError: on a configuration that is wrong or not supported.
            WeightsError: where a weight of the encoder is missing, a shape differs, a file is damaged, or weights are stored
                as pickle alone; it names the key, the file and what to do.
        """
        config = BertConfig.from_pretrained(folder, **overrides)
        with torch.device("meta"):
            model = cls(config)
        loading.load(model, Path(folder), dtype, replace_head, head_rows)
        return model.eval()

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write config.json and model.safetensors into `folder`, as transformers writes them and loads them.

        Each file appears whole or not at all. The tied decoder is not stored twice.

        Args:
            state_dict: in place of the model's own, where parameters are sharded and were gathered.

        Raises:
            ValueError: where parameters are sharded (gather them first) or hold no data.
        """
        saving.save(self, Path(folder), state_dict)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Give all parameters BERT's initial values: normal of config.initializer_range, biases zero, norms 1 and 0.

        generator: of the parameters' device; torch's default one where it is None.
        """
        initialise(self, self.config.initializer_range, generator)

    @torch.no_grad()
    def resize_token_embeddings(self, words: int) -> None:
        """Give the word table `words` rows: new ones are drawn as BERT's initial weights are, from torch's default generator.

        Raises:
            ValueError: there are more rows than that, or a masked-LM head, whose bias would have to grow as well.
        """
        table = self.base.embeddings.word_embeddings
        if words < table.num_embeddings or any(
            name.startswith("cls.predictions.") for name, _ in self.named_parameters()
        ):
            raise ValueError(
                f"resize_token_embeddings({words}): the table has {table.num_embeddings} rows, and only a model without a "
                "masked-LM head can be given more"
            )
        grown = table.weight.new_empty(words, table.embedding_dim)
        grown[: table.num_embeddings] = table.weight
        grown[table.num_embeddings :].normal_(0.0, self.config.initializer_range)
        table.weight, table.num_embeddings = nn.Parameter(grown), words
        for part in (self, self.base):
            part.config = part.config.replace(vocab_size=words)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each layer's input for backward, and compute the layer again there: less memory, a third more time."""
        self.base.encoder.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep for backward what it needs."""
        self.base.encoder.gradient_checkpointing = False

    def set_precision(self, precision: str | None, recipe: Recipe | None = None) -> None:
        """Multiply in FP8 on a GPU of sm_89 or newer, wherever products would be in bfloat16: the model's own or autocast's.

        Args:
            precision: "fp8", or None for the model's own again.
            recipe: of training; the default of docs/fp8.md where it is None. In inference every layer is in FP8, by scales of rows.

        Raises:
            ValueError: for another precision or kind of recipe, where no GPU here has FP8 products, or for rows whose number of
                columns is no multiple of 16.
        """
        if precision not in (None, "fp8"):
            raise ValueError(f'precision must be None (the model\'s own) or "fp8", got {precision!r}')
        reason = fp8_state.unavailable() if precision == "fp8" else None
        if reason is not None:
            raise ValueError(
                f'precision "fp8" cannot be had: {reason}. It needs an NVIDIA GPU of sm_89 (Ada, Hopper) or newer; '
                "model.to(torch.bfloat16) works everywhere"
            )
        if recipe is not None and not isinstance(recipe, Recipe):
            raise ValueError(f"recipe must be a bertfast.nn.fp8_state.Recipe or None, got {recipe!r}")
        sizes = self.config.hidden_size, self.config.intermediate_size
        if precision == "fp8" and (odd := [size for size in sizes if size % fp8_state.MULTIPLE]):
            raise ValueError(
                f'precision "fp8" cannot be had: rows of this model have {odd[0]} columns, and FP8 products take multiples of '
                f"{fp8_state.MULTIPLE}; model.to(torch.bfloat16) works with any"
            )
        encoder = self.base.encoder
        encoder.infer_fp8 = precision == "fp8"
        encoder.fp8 = (recipe or Recipe()) if precision == "fp8" else None

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the parameters hold; tied ones count once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def arrange(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
    ) -> Tokens:
        """A call's input, checked and packed."""
        positions = self.config.max_position_embeddings
        return arrange(input_ids, attention_mask, token_type_ids, position_ids, cu_seqlens, max_seqlen, positions)


class BertPooler(nn.Module):
    """tanh(W x + b) of each sequence's first token; [B, E] to [B, E]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


class BertModel(BertPreTrainedModel):
    """BERT without a head (Devlin et al., 2018).

    On a GPU inference is captured: from ids to the last layer it is one replay of a CUDA graph, from the second call of a bucket of
    sizes on. In training the layers are, forward and backward. A packed call (`cu_seqlens`) waits for nothing, a padded one with a
    mask once.

    Args:
        add_pooling_layer: whether there is a pooler, as heads on whole sequences need.

    Attributes:
        graph_limits: how many graphs it may keep, and in how many bytes.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = BertEmbeddings(
            config.vocab_size,
            config.hidden_size,
            config.max_position_embeddings,
            config.type_vocab_size,
            config.hidden_dropout_prob,
            config.layer_norm_eps,
            config.pad_token_id,
        )
        self.encoder = BertEncoder(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_act,
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
            config.layer_norm_eps,
        )
        self.pooler: Any = BertPooler(config) if add_pooling_layer else None
        self.graph_limits = Limits()
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> BertModelOutput:
        """Hidden states of all tokens, and the pooler's output.

        Args:
            input_ids: [B, S] padded, or [T] packed; int64 or int32.
            attention_mask: [B, S], true or 1 at real tokens, anywhere in a row; padded input only. All are real without it.
            token_type_ids: of input_ids' shape; zeros where it is None.
            position_ids: of input_ids' shape; places within the row (padded) or the sequence (packed) where it is None.
            cu_seqlens: [B + 1] int32, where sequences of packed input begin: rises from 0 to T or less. Tokens past the last
                bound belong to no sequence and change nothing; sequences may be empty.
            max_seqlen: a bound on the longest packed sequence. Looked up where it is None, on a CPU alone.

        Raises:
            IndexError: on an id outside its table.
            ValueError: on shapes, dtypes or bounds that do not belong together.
        """
        tokens = self.arrange(input_ids, attention_mask, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        rows, _ = self.encode(tokens)
        pooled = None if self.pooler is None else self.pooled(tokens.first_of(rows), tokens)
        return BertModelOutput(tokens.restore(rows), pooled)

    def encode(self, tokens: Tokens, read: Tensor | None = None, *, tied: bool = False) -> tuple[Tensor, Tensor]:
        """Hidden states [N, E] of the last layer, or [R, E] of the rows `read`; and the word table, for use as a decoder's
        weight where `tied` says that it is used so (`ops.tied_embedding_sum_norm`)."""
        encoder = self._on_gpu(tokens)
        if encoder is not None:  # without gradients, which are what a tied table shares
            return encoder.encode(tokens, read, torch.clone).result, self.embeddings.word_embeddings.weight
        x = self.embeddings(tokens.input_ids, tokens.token_type_ids, tokens.position_ids, tied=tied)
        x, word = x if tied else (x, self.embeddings.word_embeddings.weight)
        layers = self._trained(x)
        if layers is not None:
            return run(layers, x, tokens.layout(read), self.graph_limits).rows, word
        return self.encoder(x, cu_seqlens=tokens.bounds, max_seqlen=tokens.max_seqlen, read=read), word

    def _trained(self, x: Tensor) -> Layers | None:
        """The layers in training on a GPU; None where the encoder must be called."""
        if not torch.is_grad_enabled() or x.device.type not in device.KINDS or torch.compiler.is_compiling():
            return None
        if type(self.encoder) is not BertEncoder or not untouched(self.encoder):
            return None
        layers = self.encoder.layers(x.shape[-1]).ready(x)
        return layers if isinstance(layers.at_once, Trained) else None

    def _on_gpu(self, tokens: Tokens) -> Encoder | None:
        """What runs a call on a GPU without gradients; None where modules must be called."""
        if torch.is_grad_enabled() or tokens.input_ids.device.type not in device.KINDS:
            return None
        return encoder_of(self)

    def pooled(self, first: Tensor, tokens: Tokens) -> Tensor:
        """The pooler's output [B, E] from first tokens [B, E], zeros for sequences without tokens."""
        pooled = self.pooler(first)
        if tokens.packing is None and len(tokens.shape) == 2:
            return pooled
        return pooled.masked_fill((tokens.cu_seqlens[1:] == tokens.cu_seqlens[:-1])[:, None], 0.0)

    def first_pooled(self, tokens: Tokens) -> Tensor:
        """The pooler's output [B, E] where nobody reads another token: the last layer is computed for first tokens alone."""
        encoder = self._on_gpu(tokens)
        if encoder is not None:
            return self.pooled(encoder.encode(tokens, "first", torch.clone).result, tokens)
        reading = tokens.reading()
        rows, _ = self.encode(tokens, reading.rows)
        return self.pooled(rows.index_select(0, reading.first), tokens)
