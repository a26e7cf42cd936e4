"""The heads of fine-tuning: whole sequences, choices, answers in a text, and tokens (Devlin et al., 2018, section 4)."""

from torch import Tensor, nn

from bertfast.models.bert import BertModel, BertPreTrainedModel, initialise
from bertfast.models.config import BertConfig, ConfigError
from bertfast.models.losses import IGNORED, check_labels, choices, classification, cross_entropy, span
from bertfast.models.outputs import QuestionAnsweringOutput, SequenceOutput, TokenOutput


class _Classifier(BertPreTrainedModel):
    """BERT, dropout, and a linear layer."""

    def __init__(self, config: BertConfig, *, pooler: bool, outputs: int):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=pooler)
        rate = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.classifier = nn.Linear(config.hidden_size, outputs)
        initialise(self.classifier, config.initializer_range)


class BertForSequenceClassification(_Classifier):
    """BERT with a classifier or a regression on the pooler's output; the last layer is computed for first tokens alone."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=True, outputs=config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
    ) -> SequenceOutput:
        """Logits [B, C], and with labels the loss; input as in `BertModel.forward`.

        Args:
            labels: [B] int64 classes, -100 for none: cross-entropy. With one label, [B] or [B, 1]: mean squared error. Floats
                [B, C]: binary cross-entropy. `config.problem_type`, where set, decides. Sequences without tokens do not count.
        """
        tokens = self.arrange(input_ids, attention_mask, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        logits = self.classifier(self.dropout(self.bert.first_pooled(tokens)))
        loss = None if labels is None else classification(logits, labels, tokens, self.config.problem_type)
        return SequenceOutput(loss, logits)


class BertForMultipleChoice(_Classifier):
    """BERT that scores each choice as a sequence of its own, a question and its choice; a softmax is over those of a question."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=True, outputs=1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> SequenceOutput:
        """Scores of choices, and with labels the loss.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: [B, C, S], as transformers has them; or as in
                `BertModel.forward`, a sequence for each choice, of questions that may have different numbers of choices.
            labels: [B] int64, the right choice of each question, -100 for none. With `groups` [N] int64, 1 at the right choice of
                each question, 0 at the others, -100 at sequences that are none.
            groups: [N] int64, the number of the question that each of the N sequences is of, negative at sequences that are none.

        Returns:
            logits [B, C], or [N] for a sequence each.

        Raises:
            ValueError: on `groups` beside input of three dimensions, and labels without them elsewhere.
        """
        by_question = input_ids.dim() == 3
        if labels is not None and by_question == (groups is not None):
            raise ValueError(
                "labels of choices need groups [N], the question of each sequence, for input [B, S] or [T], and none for "
                "input [B, C, S]"
            )
        inputs = (input_ids, attention_mask, token_type_ids, position_ids)
        flat = [None if each is None else each.flatten(0, 1) if by_question else each for each in inputs]
        assert flat[0] is not None
        tokens = self.arrange(flat[0], *flat[1:], cu_seqlens, max_seqlen)
        logits = self.classifier(self.dropout(self.bert.first_pooled(tokens)))[:, 0]
        if by_question:
            logits = logits.view(input_ids.shape[:2])
        if labels is None:
            return SequenceOutput(None, logits)
        labels = check_labels("labels", labels, tuple(logits.shape[:1]))
        if groups is None:
            return SequenceOutput(cross_entropy(logits, labels), logits)
        return SequenceOutput(choices(logits, labels, check_labels("groups", groups, tuple(logits.shape))), logits)


class BertForTokenClassification(_Classifier):
    """BERT with a classifier on every token, without a pooler."""

    def __init__(self, config: BertConfig):
        super().__init__(config, pooler=False, outputs=config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
    ) -> TokenOutput:
        """Logits of input_ids' shape and [C]; with labels of that shape, -100 where there is none, the loss.

        Input as in `BertModel.forward`. Labels at padding do not count, whatever they are.
        """
        tokens = self.arrange(input_ids, attention_mask, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        rows, _ = self.bert.encode(tokens)
        logits = self.classifier(self.dropout(rows))
        loss = None
        if labels is not None:
            loss = cross_entropy(logits, tokens.of(check_labels("labels", labels, tokens.shape), IGNORED))
        return TokenOutput(loss, tokens.restore(logits))


class BertForQuestionAnswering(BertPreTrainedModel):
    """BERT that finds the first and last token of an answer, without a pooler."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        if config.num_labels != 2:
            raise ConfigError(
                f"question answering has two outputs, an answer's first and last token, but num_labels is {config.num_labels}: "
                "give num_labels=2"
            )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        initialise(self.qa_outputs, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> QuestionAnsweringOutput:
        """Logits of input_ids' shape, and with both positions the loss; input as in `BertModel.forward`.

        Unlike transformers', the loss is a softmax over each sequence's own tokens, not over padding too.

        Args:
            start_positions, end_positions: [B] int64, the answer's first and last token, counted in the sequence where packed
                and in the row where padded. What is outside the sequence does not count.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError("start_positions and end_positions must be given together")
        tokens = self.arrange(input_ids, attention_mask, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        rows, _ = self.bert.encode(tokens)
        logits = self.qa_outputs(rows)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span(logits, start_positions, end_positions, tokens)
        start, end = tokens.restore(logits).unbind(-1)
        return QuestionAnsweringOutput(loss, start, end)
