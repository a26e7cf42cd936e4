"""Training of Hugging Face models whose layers run from captured graphs: loops, Trainer, DDP, and what runs eagerly and says why.

The tape in `captured` computes again what was captured, whatever Python would do by now."""

import copy
import threading

import pytest
import torch
import torch.distributed as dist
from bert_cases import HEADS, PADDINGS, assert_same, batch_of, head_inputs, loss_of, outcome, pair
from captured import captured_on_cpu
from torch import nn
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast import graphs

FAST = "fast, padding removed"
FIRST, CAPTURED, REPLAYED = (f"{FAST}: {how}" for how in ("eager: first call of its bucket", "captured", "replayed"))


@pytest.fixture(autouse=True)
def on_a_stand_in():
    with captured_on_cpu():
        yield


def calls(model) -> dict[str, int]:
    return outcome(model, "BertEncoder")


def gradients_of(model, inputs, seed: int = 5) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss_of(model(**inputs), inputs["attention_mask"].flatten(0, -2)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-4) -> None:
    """Gradients; that of a key's bias is zero but for rounding."""
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        if not name.endswith("key.bias"):
            assert_same(ours[name], gradient, name, tolerance)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.equal(ours[name], gradient), name


def replaying(head=hf.BertModel, **options):
    """A stock model in training and its copy, whose next call on such a batch is a replay."""
    stock, fast = pair(head, train=True, **options)
    for _ in range(2):
        gradients_of(fast, head_inputs(head, "right"))
    return stock, fast


@pytest.mark.parametrize("padding", [*PADDINGS, "an empty row"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_head(head, padding):
    stock, fast = pair(head, train=True)
    inputs = head_inputs(head, padding if padding in PADDINGS else "right")
    if padding == "an empty row":
        inputs["attention_mask"] = inputs["attention_mask"].clone()
        inputs["attention_mask"].flatten(0, -2)[1] = 0
        if inputs.get("labels") is not None and inputs["labels"].shape == inputs["attention_mask"].shape:
            inputs["labels"][1] = -100
    expected = gradients_of(stock, inputs)
    for _ in range(4):
        assert_alike(gradients_of(fast, inputs), expected, 5e-4)
    said = calls(fast)
    assert sum(said.values()) == 4
    if padding == "right" and head not in (hf.BertForQuestionAnswering, hf.BertLMHeadModel):
        assert said == {FIRST: 1, CAPTURED: 1, REPLAYED: 2}
        assert bertfast.report(fast).to_dict()["graphs"]["number"] == 1


def test_the_eager_fast_path_to_the_bit():
    """Where the rows are as many as a bucket's."""
    captured, eager = pair(train=True, dropout=0.1)[1], pair(train=True, dropout=0.1, options={"max_graphs": 0})[1]
    inputs = batch_of("none")  # 48 tokens
    for _ in range(4):
        assert_equal(gradients_of(captured, inputs), gradients_of(eager, inputs))
    assert calls(captured) == {FIRST: 1, CAPTURED: 1, REPLAYED: 2}
    assert calls(eager) == {f"{FAST}: eager: max_graphs is 0": 4}


def test_gradient_of_the_inputs():
    stock, fast = replaying()
    results = []
    for model in (stock, fast):
        embeds = model.get_input_embeddings()(batch_of("right")["input_ids"]).detach().requires_grad_()
        mask = batch_of("right")["attention_mask"]
        loss_of(model(inputs_embeds=embeds, attention_mask=mask), mask).backward()
        results.append(embeds.grad)
    assert_same(results[1], results[0], tolerance=1e-4)


def curve(model, steps: int = 12, **options) -> list[float]:
    """Losses of a loop with AdamW, clipping and accumulation over batches of several sizes."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    torch.manual_seed(3)
    for number in range(steps):
        for padding in ("none", "none"):
            inputs = head_inputs(hf.BertForSequenceClassification, padding)
            inputs["input_ids"] = (inputs["input_ids"] * (number + 1)) % 99
            loss = model(**inputs).loss / 2
            loss.backward()
            losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(**options)
    return losses


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loss_curve(set_to_none):
    """That of the eager fast path to the bit."""
    head = hf.BertForSequenceClassification
    captured, eager = (pair(head, train=True, dropout=0.1, options=o)[1] for o in ({}, {"max_graphs": 0}))
    assert curve(captured, set_to_none=set_to_none) == curve(eager, set_to_none=set_to_none)
    assert calls(captured)[REPLAYED] == 22
    for one, two in zip(captured.parameters(), eager.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer(tmp_path, bf16):
    """transformers' own loop: accumulation, clipping, autocast, its scheduler."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 99, (48, 12), generator=generator)
    data = [
        {"input_ids": row, "attention_mask": torch.ones(12, dtype=torch.long), "labels": row.sum() % 3} for row in ids
    ]

    def train(model, folder):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder), per_device_train_batch_size=4, gradient_accumulation_steps=2,
            max_grad_norm=0.5, max_steps=6, learning_rate=1e-3, bf16=bf16, use_cpu=True, report_to=[], seed=3,
            logging_steps=1, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    head = hf.BertForSequenceClassification
    captured, eager = (pair(head, train=True, dropout=0.1, options=o)[1] for o in ({}, {"max_graphs": 0}))
    assert train(captured, "captured") == train(eager, "eager")
    assert calls(captured) == {FIRST: 1, CAPTURED: 1, REPLAYED: 10}
    for one, two in zip(captured.parameters(), eager.parameters(), strict=True):
        assert torch.equal(one, two)


def _rank(rank: int, file: str, results) -> None:
    import sys

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        with captured_on_cpu():
            head = hf.BertForSequenceClassification
            models = [pair(head, train=True, options=o)[1] for o in ({}, {"max_graphs": 0})]
            wrapped = [nn.parallel.DistributedDataParallel(model) for model in models]
            for step in range(4):
                inputs = head_inputs(head, "none")
                inputs["input_ids"] = (inputs["input_ids"] * (step + 1 + 7 * rank)) % 99
                for model in wrapped:
                    model.zero_grad()
                    model(**inputs).loss.backward()
                for one, two in zip(*(model.parameters() for model in models), strict=True):
                    assert torch.equal(one.grad, two.grad)
            every = [torch.zeros_like(models[0].classifier.weight) for _ in range(2)]
            dist.all_gather(every, models[0].classifier.weight.grad)
            assert torch.equal(*every), "gradients are the mean over both ranks"
            results.put((rank, calls(models[0])))
    finally:
        dist.destroy_process_group()
    sys.exit(0)


def test_ddp(tmp_path):
    """Two processes: the hooks that reduce gradients see each once, and both ranks end with the same."""
    context = torch.multiprocessing.get_context("forkserver")
    # Once for both.
    context.set_forkserver_preload(["transformers.models.bert.modeling_bert", "bertfast.convert.optimize"])
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path / "store"), results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(1800)
        assert rank.exitcode == 0
    said = {FIRST: 1, CAPTURED: 1, REPLAYED: 2}
    assert dict(results.get(timeout=600) for _ in ranks) == {0: said, 1: said}


def test_hooks_of_parameters():
    stock, fast = replaying()
    seen = {model: [] for model in (stock, fast)}
    for model in (stock, fast):
        weight = model.encoder.layer[1].output.dense.weight
        weight.register_hook(lambda gradient, model=model: seen[model].append(gradient.clone()))
        weight.register_post_accumulate_grad_hook(lambda p, model=model: seen[model].append(p.grad.clone()))
        for _ in range(2):
            gradients_of(model, batch_of("right"))
    assert len(seen[fast]) == len(seen[stock]) == 4
    for one, two in zip(seen[fast], seen[stock], strict=True):
        assert_same(one, two, tolerance=1e-4)
    assert calls(fast)[REPLAYED] == 2


def test_two_forwards_before_a_backward():
    """Contrastive training embeds two sides with one model: the second side runs eagerly, gradients are those of both."""
    stock, fast = replaying()
    sides = [batch_of("right"), batch_of("right") | {"input_ids": batch_of("right")["input_ids"].flip(0)}]

    def gradients(model):
        model.zero_grad()
        first, second = (model(**side).pooler_output for side in sides)
        (first * second).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(stock)
    for _ in range(2):
        assert_alike(gradients(fast), expected)
    said = calls(fast)
    assert said[REPLAYED] == 2
    assert said[f"{FAST}: eager: another call is between its forward and its backward"] == 2


@pytest.mark.parametrize("times", [2, 3])
def test_backward_several_times(times):
    stock, fast = replaying(dropout=0.1)
    eager = bertfast.optimize(copy.deepcopy(stock), max_graphs=0)
    results = []
    for model in (fast, eager):
        model.zero_grad()
        torch.manual_seed(5)
        loss = loss_of(model(**batch_of("none")), batch_of("none")["attention_mask"])
        for number in range(times):
            loss.backward(retain_graph=number < times - 1)
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_alike(*results)


def test_evaluation_between_steps():
    """Inference and training in turn, each from its own graphs, under one bound."""
    stock, fast = pair()
    inputs = batch_of("right")
    for _ in range(4):
        for model in (stock, fast):
            model.train()
        assert_alike(gradients_of(fast, inputs), gradients_of(stock, inputs))
        for model in (stock, fast):
            model.eval()
        with torch.no_grad():
            ours, theirs = (model(**inputs).last_hidden_state for model in (fast, stock))
        real = inputs["attention_mask"].bool()
        assert_same(ours[real], theirs[real])
    assert calls(fast)[REPLAYED] == 2
    assert outcome(fast, "BertModel")["fast, from ids to hidden states: replayed"] == 2
    assert bertfast.report(fast).to_dict()["graphs"]["number"] == 2


def test_evaluation_inside_a_step():
    stock, fast = replaying()
    inputs, results = batch_of("right"), []
    for model in (stock, fast):
        model.zero_grad()
        loss = loss_of(model(**inputs), inputs["attention_mask"])
        model.eval()
        with torch.no_grad():
            for _ in range(3):
                model(**batch_of("none"))
        model.train()
        loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_alike(results[1], results[0])


@pytest.mark.parametrize("frozen", ["embeddings", "encoder.layer.0", "encoder.layer.1.output", "encoder"])
def test_frozen_parts(frozen):
    stock, fast = replaying()
    for model in (stock, fast):
        model.get_submodule(frozen).requires_grad_(False)
    inputs = batch_of("right")
    expected = gradients_of(stock, inputs)
    for _ in range(3):
        assert_alike(gradients_of(fast, inputs), expected)
    assert calls(fast)[REPLAYED] >= 1
    for model in (stock, fast):
        model.requires_grad_(True)
    assert_alike(gradients_of(fast, inputs), gradients_of(stock, inputs))


def _data_edit(model):
    model.encoder.layer[0].intermediate.dense.weight.data.mul_(2)


def _new_data(model):
    model.encoder.layer[0].intermediate.dense.weight.data = model.encoder.layer[0].intermediate.dense.weight.data * 2


def _load(model):
    model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()}, assign=True)


def _round_trip(model):
    model.double().float()


@pytest.mark.parametrize("change", [_data_edit, _new_data, _load, _round_trip], ids=lambda c: c.__name__.strip("_"))
def test_edited_weights(change):
    stock, fast = replaying()
    inputs = batch_of("right")
    for model in (stock, fast):
        change(model)
    expected = gradients_of(stock, inputs)
    for _ in range(3):
        assert_alike(gradients_of(fast, inputs), expected)
    assert calls(fast)[REPLAYED] >= 1


def _said(model) -> str:
    """What the calls so far that were no first call, capture or replay did."""
    return "; ".join(how for how in calls(model) if how not in (FIRST, CAPTURED, REPLAYED))


def _checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})


def _hook(model):
    model.encoder.layer[0].register_forward_hook(lambda module, args, output: None)


def _inner_hook(model):
    model.encoder.layer[0].output.dense.register_forward_hook(lambda module, args, output: None)


def _replaced(model):
    dense = model.encoder.layer[1].output.dense

    class Linear(nn.Linear):
        pass

    other = Linear(dense.in_features, dense.out_features)
    other.load_state_dict(dense.state_dict())
    model.encoder.layer[1].output.dense = other


EAGER = {
    _checkpointed: "gradient checkpointing calls layers one by one",
    _hook: "layer 0: it has hooks",
    _inner_hook: "layer 0: output.dense has hooks",
    _replaced: "layer 1: output.dense is",
}


@pytest.mark.parametrize("change", EAGER, ids=lambda change: change.__name__.strip("_"))
def test_what_is_not_captured_says_why(change):
    stock, fast = replaying()
    for model in (stock, fast):
        change(model)
    inputs = batch_of("right")
    expected = gradients_of(stock, inputs)
    for _ in range(3):
        assert_alike(gradients_of(fast, inputs), expected)
    assert EAGER[change] in _said(fast)
    assert calls(fast).get(REPLAYED, 0) == 0


def test_lora():
    peft = pytest.importorskip("peft")
    stock, fast = replaying()
    options = peft.LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False)
    both = []
    for model in (stock, fast):
        torch.manual_seed(0)
        both.append(peft.get_peft_model(model, options))
    inputs = batch_of("right")
    expected = gradients_of(both[0], inputs)
    for _ in range(3):
        assert_alike(gradients_of(both[1], inputs), expected)
    assert "its layers do not run at once" in _said(fast)
    assert calls(fast).get(REPLAYED, 0) == 0


def test_a_merged_adapter_is_captured_again():
    peft = pytest.importorskip("peft")
    stock, fast = replaying()
    options = peft.LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False)
    both = []
    for model in (stock, fast):
        torch.manual_seed(0)
        both.append(peft.get_peft_model(model, options).merge_and_unload())
        both[-1].requires_grad_(True)
    inputs = batch_of("right")
    expected = gradients_of(both[0], inputs)
    for _ in range(3):
        assert_alike(gradients_of(both[1], inputs), expected)
    assert calls(both[1])[REPLAYED] >= 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_around_a_model(reentrant):
    stock, fast = replaying()
    inputs = batch_of("right")
    mask, results = inputs["attention_mask"], []
    for model in (stock, fast):
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        model.zero_grad()

        def loss(embeds, model=model):
            return loss_of(model(inputs_embeds=embeds, attention_mask=mask), mask)

        torch.utils.checkpoint.checkpoint(loss, embeds, use_reentrant=reentrant).backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        results[-1]["embeds"] = embeds.grad
    assert_alike(results[1], results[0])
    assert "checkpointing" in _said(fast)


def test_several_threads():
    """Models in loops of their own: right, and none waits for another's capture."""
    errors = []

    def loop(stock, fast):
        try:
            for _ in range(6):
                assert_alike(gradients_of(fast, batch_of("none")), gradients_of(stock, batch_of("none")))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=pair(train=True)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1800)
        assert not thread.is_alive()
    assert not errors, errors[0]


def test_suspended():
    stock, fast = replaying()
    with graphs.suspended():
        assert_alike(gradients_of(fast, batch_of("right")), gradients_of(stock, batch_of("right")))
    assert "its caller captures whole steps" in _said(fast)


def test_max_graphs():
    fast = pair(train=True, options={"max_graphs": 1})[1]
    for padding in ("none", "right", "none", "right") * 2:
        gradients_of(fast, batch_of(padding))
        assert bertfast.report(fast).to_dict()["graphs"]["number"] <= 1


def test_max_graph_bytes():
    fast = pair(train=True, options={"max_graph_bytes": 1000})[1]
    for _ in range(3):
        gradients_of(fast, batch_of("none"))
    assert "max_graph_bytes" in _said(fast)
    assert any("max_graph_bytes" in note for note in bertfast.report(fast).notes)


def test_restored_models_have_none():
    _, fast = replaying()
    bertfast.restore(fast)
    assert graphs.memory(fast).graphs == 0
    gradients_of(fast, batch_of("right"))
