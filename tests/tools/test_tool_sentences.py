"""sentence-transformers: encode, predict, rank, pools and training of an optimised model are those of the stock one."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_models import cross_encoder, encoder, pairs, save, texts
from sentence_transformers import CrossEncoder, SentenceTransformer

import bertfast
from bertfast.convert.sentences import batches, first_tokens
from bertfast.convert.sentences.loops import FAST, FIRST_TOKENS
from bertfast.testing import assert_within_budget


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("pairs"), labels=1)


def calls(model):
    """Outcomes of the model's own loop."""
    return bertfast.report(model).rows[0].calls


def inside(model):
    """Outcomes of the base model inside."""
    return {what for row in bertfast.report(model).rows if row.kind.endswith("Model") for what in row.calls}


def assert_like_stock(make, call, dtype=torch.float32, how=FAST):
    """The model of `make`, optimised, and the call's numbers within the budget; call(model) is a tensor."""
    fast = bertfast.optimize(make().to(dtype))
    ours, stock, oracle = call(fast), call(make().to(dtype)), call(make().double())
    assert ours.dtype == stock.dtype
    assert_within_budget(ours, stock, oracle)
    assert list(calls(fast)) == [how]
    return fast


@pytest.mark.tool("sentence-transformers", "SentenceTransformer.encode", "fast")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
def test_encode(tmp_path, family, dtype):
    folder = save(tmp_path, family)
    sentences = texts(60)
    fast = assert_like_stock(
        lambda: encoder(folder), lambda model: model.encode(sentences, batch_size=8, convert_to_tensor=True), dtype
    )
    layers = [row.calls for row in bertfast.report(fast).rows if row.kind.endswith(("Layer", "TransformerBlock"))]
    assert layers
    assert all(what.startswith("fast") for calls_of_layer in layers for what in calls_of_layer)


OPTIONS = {
    "one text": {"inputs": "w1 w2 w3"},
    "pairs": {"inputs": pairs(9)},
    "array": {"inputs": np.array(texts(9))},
    "batch of one": {"batch_size": 1},
    "normalized": {"normalize_embeddings": True},
    "truncated": {"truncate_dim": 5},
    "prompt": {"prompt": "w7 w8 "},
    "prompt by name": {"prompt_name": "query"},
    "task": {"task": "query"},
    "shorter": {"processing_kwargs": {"text": {"max_length": 7}}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_encode(folder, options):
    arguments = {"inputs": texts(25), "convert_to_tensor": True, **options}
    assert_like_stock(
        lambda: encoder(folder, include_prompt=False, prompts={"query": "w1 w2 w3 "}),
        lambda model: model.encode(**arguments),
    )


@pytest.mark.parametrize("mode", ["cls", "max", ("cls", "weightedmean"), "mean_sqrt_len_tokens", "lasttoken"])
def test_pooling(folder, mode):
    assert_like_stock(
        lambda: encoder(folder, mode, normalize=True),
        lambda model: model.encode(texts(25), convert_to_tensor=True),
        how=FIRST_TOKENS if mode == "cls" else FAST,
    )


def test_first_tokens_alone(folder):
    """The last layer's other tokens are not computed: they come out as zeros."""
    model = bertfast.optimize(encoder(folder, "cls"))
    features = model.preprocess(["w1 w2 w3", "w4 w5 w6"])
    with torch.inference_mode(), first_tokens.asked_for(model):
        hidden = model(features)["token_embeddings"]
    assert hidden[:, 0].any()
    assert not hidden[:, 1:].any()


def after_the_prompt(model):
    model[1].include_prompt = False


def with_hook(model):
    model[0].register_forward_hook(lambda module, arguments, output: None)


@pytest.mark.parametrize("change", [after_the_prompt, with_hook])
def test_pooling_of_first_tokens_that_others_may_see(folder, change):
    """Where a hook or the pooling itself may read other tokens than the first, the last layer computes all."""

    def make():
        model = encoder(folder, "cls")
        change(model)
        return model

    assert_like_stock(make, lambda model: model.encode(texts(9), prompt="w1 w2 ", convert_to_tensor=True), how=FAST)


def test_a_tokenizer_in_python(folder, tmp_path):
    """As Japanese models have one."""
    from transformers import BertJapaneseTokenizer

    vocabulary = tmp_path / "vocab.txt"

    def make():
        model = encoder(folder)
        words = sorted(model.tokenizer.vocab, key=model.tokenizer.vocab.get)
        vocabulary.write_text("\n".join(words) + "\n")
        model[0].processor = BertJapaneseTokenizer(str(vocabulary), word_tokenizer_type="basic", model_max_length=20)
        return model

    assert not make().tokenizer.is_fast
    assert_like_stock(make, lambda model: model.encode(texts(15), batch_size=4, convert_to_tensor=True))


def test_kinds_of_results(folder, capsys):
    stock, fast = encoder(folder), bertfast.optimize(encoder(folder))
    sentences = texts(20)
    for options in ({}, {"convert_to_numpy": False}, {"precision": "uint8"}, {"precision": "binary"}):
        theirs, ours = stock.encode(sentences, **options), fast.encode(sentences, **options)
        assert type(ours) is type(theirs)
        assert ours[0].dtype == theirs[0].dtype
        difference = np.abs(np.stack(ours).astype(np.float64) - np.stack(theirs).astype(np.float64))
        # A byte may round to its neighbour, and a bit of a value that is nearly zero may turn.
        assert (difference < 1e-5).mean() > 0.98
    assert fast.encode([]).shape == stock.encode([]).shape
    fast.encode(sentences, batch_size=3, show_progress_bar=True)
    assert "7/7" in capsys.readouterr().err
    with pytest.raises(ValueError, match="batch_size"):
        fast.encode(sentences, batch_size=0)


def test_batches_are_bounded(folder, monkeypatch):
    """A batch has no more places than the library's own of the longest texts, and none is lost or doubled."""
    monkeypatch.setattr(batches, "TEXTS_AT_ONCE", 16)
    model, sentences = encoder(folder), texts(50)
    seen = list(batches.batches(model, sentences, 4, {}))
    assert sorted(int(row) for batch in seen for row in batch.rows) == list(range(50))
    longest = max(batch.features["input_ids"].shape[1] for batch in seen)
    assert max(batch.features["input_ids"].numel() for batch in seen) <= 4 * longest
    real = sum(int(batch.features["attention_mask"].sum()) for batch in seen)
    assert real > 0.85 * sum(batch.features["input_ids"].numel() for batch in seen)


def left_padding(model):
    model.tokenizer.padding_side = "left"


def own_module(model):
    model.append(torch.nn.Identity())


def own_preprocess(model):
    model[0].preprocess = type(model[0]).preprocess.__get__(model[0])


FALLBACKS = {
    "token embeddings": ({"output_value": "token_embeddings"}, None, "output_value is 'token_embeddings'"),
    "everything": ({"output_value": None}, None, "output_value is None"),
    "padding asked for": ({"processing_kwargs": {"text": {"padding": "max_length"}}}, None, "more than a length"),
    "left padding": ({}, left_padding, "does not pad on the right"),
    "own module": ({}, own_module, "Identity is not a module of sentence-transformers"),
    "own preprocess": ({}, own_preprocess, "a preprocess of its own"),
}


@pytest.mark.tool("sentence-transformers", "encode(output_value='token_embeddings')", "falls back")
@pytest.mark.parametrize(("options", "change", "words"), FALLBACKS.values(), ids=FALLBACKS)
def test_the_librarys_own_batches(folder, options, change, words):
    stock, fast = encoder(folder), bertfast.optimize(encoder(folder))
    for model in (stock, fast):
        if change is not None:
            change(model)
    sentences = texts(12)
    theirs, ours = (model.encode(sentences, convert_to_numpy=False, **options) for model in (stock, fast))
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, dict):
            assert a.keys() == b.keys()
            a, b = a["sentence_embedding"], b["sentence_embedding"]
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    (how,) = calls(fast)
    assert how.startswith("the library's own batches: ")
    assert words in how


@pytest.mark.tool("sentence-transformers", "CrossEncoder.predict", "fast")
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_predict(tmp_path, family):
    folder = save(tmp_path, family, labels=3)
    for options in ({}, {"apply_softmax": True}, {"activation_fn": torch.nn.Sigmoid()}, {"prompt": "w5 "}):
        fast = assert_like_stock(
            lambda: cross_encoder(folder),
            lambda model, given=options: model.predict(pairs(30), batch_size=8, convert_to_tensor=True, **given),
        )
        assert inside(fast) == {"fast, from ids to hidden states"}


@pytest.mark.tool("sentence-transformers", "CrossEncoder.rank", "fast")
def test_rank(pair_folder):
    stock, fast = cross_encoder(pair_folder), bertfast.optimize(cross_encoder(pair_folder))
    documents = texts(20, 20)
    theirs, ours = (
        model.rank("w1 w2 w3", documents, top_k=5, return_documents=True, batch_size=4) for model in (stock, fast)
    )
    assert [row["corpus_id"] for row in ours] == [row["corpus_id"] for row in theirs]
    assert [row["text"] for row in ours] == [row["text"] for row in theirs]
    np.testing.assert_allclose([row["score"] for row in ours], [row["score"] for row in theirs], atol=1e-5)
    assert list(calls(fast)) == [FAST]
    assert fast.predict(("w1", "w2")).shape == stock.predict(("w1", "w2")).shape == ()
    assert type(fast.predict(pairs(3), convert_to_numpy=False)) is list


@pytest.mark.tool("sentence-transformers", "start_multi_process_pool", "fast")
def test_pool(folder):
    """Of one process, which starts slowly: how chunks are shared among several is the library's matter."""
    fast, sentences = bertfast.optimize(encoder(folder)), texts(40)
    whole = fast.encode(sentences)
    pool = fast.start_multi_process_pool(["cpu"])
    try:
        chunks = fast.encode(sentences, pool=pool, chunk_size=10)
    finally:
        fast.stop_multi_process_pool(pool)
    np.testing.assert_allclose(chunks, whole, rtol=1e-4, atol=1e-6)


def trained(model, loss, columns, trainer, arguments, out):
    data = Dataset.from_dict(columns)
    options = arguments(
        output_dir=str(out), per_device_train_batch_size=4, max_steps=3, learning_rate=1e-2, report_to=[], save_strategy="no",
        logging_strategy="no", use_cpu=True, seed=1, disable_tqdm=True,
    )  # fmt: skip
    trainer(model=model, args=options, train_dataset=data, loss=loss(model)).train()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_trained_alike(ours, theirs, before):
    moved = max(float((theirs[name] - before[name]).abs().max()) for name in before)
    assert moved > 1e-3
    for name, value in theirs.items():
        if not name.endswith("key.bias"):  # whose gradient is rounding alone
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0.02 * moved, msg=name)


@pytest.mark.tool("sentence-transformers", "SentenceTransformerTrainer", "fast")
def test_training(folder, tmp_path):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    columns = dict(zip(("anchor", "positive"), zip(*pairs(12), strict=True), strict=True))
    stock, fast = encoder(folder), bertfast.optimize(encoder(folder))
    before = {name: value.detach().clone() for name, value in stock.named_parameters()}
    theirs, ours = (
        trained(
            model, MultipleNegativesRankingLoss, columns, SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments, tmp_path,
        ) for model in (stock, fast)
    )  # fmt: skip
    assert_trained_alike(ours, theirs, before)
    encoders = [row.calls for row in bertfast.report(fast).rows if row.kind == "BertEncoder"]
    assert encoders == [{"fast, padding removed": 6}]  # two sides of three steps


@pytest.mark.tool("sentence-transformers", "CrossEncoderTrainer", "fast")
def test_training_of_pairs(pair_folder, tmp_path):
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    first, second = zip(*pairs(12), strict=True)
    columns = {"a": first, "b": second, "label": [float(i % 2) for i in range(12)]}
    stock, fast = cross_encoder(pair_folder), bertfast.optimize(cross_encoder(pair_folder))
    before = {name: value.detach().clone() for name, value in stock.named_parameters()}
    theirs, ours = (
        trained(model, BinaryCrossEntropyLoss, columns, CrossEncoderTrainer, CrossEncoderTrainingArguments, tmp_path)
        for model in (stock, fast)
    )
    assert_trained_alike(ours, theirs, before)
    encoders = [row.calls for row in bertfast.report(fast).rows if row.kind == "BertEncoder"]
    assert encoders == [{"fast, padding removed": 3}]


@pytest.mark.tool("sentence-transformers", "save, load, pickle", "fast")
def test_lives(folder, pair_folder, tmp_path):
    """Saved files name the library's classes and load again; copies stay fast; restore leaves nothing behind."""
    for make, stock, call in (
        (lambda: encoder(folder), SentenceTransformer, lambda model: model.encode(texts(9))),
        (lambda: cross_encoder(pair_folder), CrossEncoder, lambda model: model.predict(pairs(9))),
    ):
        model = bertfast.optimize(make())
        assert type(model) is not stock
        assert isinstance(model, stock)
        values = call(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), bertfast.optimize(model)):
            assert type(twin) is type(model)
            np.testing.assert_array_equal(call(twin), values)
        path = tmp_path / stock.__name__
        model.save_pretrained(str(path))
        for file in [path / "README.md", *path.rglob("*.json")]:
            assert "bertfast" not in file.read_text(), file
        (name,) = json.loads((path / "config.json").read_text())["architectures"]
        assert name in ("BertModel", "BertForSequenceClassification")
        again = stock(str(path), device="cpu")
        assert type(again) is stock
        np.testing.assert_allclose(call(again), values, rtol=1e-4, atol=1e-6)
        assert type(bertfast.restore(model)) is stock
        assert {type(module) for module in model.modules()} == {type(module) for module in make().modules()}


@pytest.mark.tool("sentence-transformers", "SentenceTransformer.compile", "fast")
def test_compiled(folder):
    fast, sentences = bertfast.optimize(encoder(folder)), texts(3)
    torch.compiler.reset()
    fast.compile(backend="eager")
    np.testing.assert_allclose(fast.encode(sentences), encoder(folder).encode(sentences), rtol=1e-4, atol=1e-5)
    assert list(calls(fast)) == [FAST]


def test_subclasses_keep_their_loop(folder):
    class Own(SentenceTransformer):
        pass

    model = encoder(folder)
    model.__class__ = Own
    assert type(bertfast.optimize(model)) is Own
    model.encode(texts(5))
    assert inside(model) == {"fast, from ids to hidden states"}
