"""optimize(dtype="int8"): close to the model's own numbers, only in inference, only where asked."""

import pytest
import torch
from bert_cases import batch_of, pair

import bertfast
from bertfast.bench.cases import minilm_folder, sentence_batches
from bertfast.ops import packed_linear

available = packed_linear.available(torch.float32, 4, int8=True)
needs_kernels = pytest.mark.skipif(not available, reason="this processor or build has no int8 kernels")


def hidden(model, **changes):
    with torch.no_grad():
        return model(**(batch_of("right") | changes)).last_hidden_state


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_close_to_the_model_and_reported(dtype):
    stock, fast = (m.to(dtype) for m in pair())
    real = batch_of("right")["attention_mask"].bool()
    bertfast.optimize(fast, dtype="int8")
    got, want = hidden(fast)[real].float(), hidden(stock)[real].float()
    assert torch.cosine_similarity(got, want, -1).min() > 0.999
    assert not torch.equal(got, hidden(bertfast.optimize(fast))[real].float())  # the later options count
    bertfast.optimize(fast, dtype="int8")
    assert "8-bit" in str(bertfast.report(fast))
    assert "8-bit" not in str(bertfast.report(bertfast.restore(fast)))
    assert torch.equal(hidden(fast)[real], hidden(stock)[real])


@needs_kernels
def test_layer_by_layer_is_int8_too():
    fast = bertfast.optimize(pair()[1], dtype="int8")
    with torch.no_grad():
        inputs = batch_of("right")
        collected = fast(**inputs, output_hidden_states=True)
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(collected.last_hidden_state[real], hidden(fast)[real], rtol=1e-4, atol=1e-4)


@needs_kernels
def test_gradients_are_those_of_the_weights():
    stock, fast = pair()
    bertfast.optimize(fast, dtype="int8")
    for model in (stock, fast):
        model(**batch_of("right")).pooler_output.sum().backward()
    ours, theirs = fast.encoder.layer[0].output.dense.weight.grad, stock.encoder.layer[0].output.dense.weight.grad
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_weights_are_followed():
    fast = bertfast.optimize(pair()[1], dtype="int8")
    before = hidden(fast)
    with torch.no_grad():
        fast.encoder.layer[0].output.dense.weight.mul_(2.0)
    assert not torch.allclose(before, hidden(fast), atol=1e-3)


@needs_kernels
def test_sentences_of_a_real_checkpoint():
    from transformers import AutoModel

    folder = minilm_folder()
    stock = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    fast = bertfast.optimize(AutoModel.from_pretrained(folder, local_files_only=True).eval(), dtype="int8")
    cosines = []
    with torch.no_grad():
        for batch in sentence_batches(folder)[:4]:
            weights = batch.attention_mask[..., None].float()

            def embed(model, batch=batch, weights=weights):
                return (model(**batch.inputs()).last_hidden_state * weights).sum(1) / weights.sum(1)

            cosines.append(torch.cosine_similarity(embed(fast), embed(stock), -1))
    assert torch.cat(cosines).mean() > 0.995


def test_errors():
    model = pair()[0]
    types = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="dtype must be None"):
        bertfast.optimize(model, dtype="float16")
    with pytest.raises(ValueError, match="prepack=True"):
        bertfast.optimize(model, dtype="int8", prepack=False)
    assert [type(m) for m in model.modules()] == types


def test_a_processor_without_the_kernels(monkeypatch):
    monkeypatch.setattr(packed_linear, "available", lambda *_, **__: False)
    with pytest.raises(ValueError, match="cannot be had"):
        bertfast.optimize(pair()[0], dtype="int8")
