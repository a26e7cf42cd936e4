"""The stages that time whole models, on a CPU with tiny ones: their lines are whole, in order, and say what was measured."""

import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import compiled, docs, encoder, faster, measure, results, sentences
from bertfast.triton import verified

SHAPE = {"dtype", "hidden", "layers", "tokens", "seqlen", "padding", "path", "clock"}


WallClock = measure.WallClock


class Ticks(WallClock):
    """A second for whatever is timed."""

    def start(self, thunk):
        thunk()
        return 1.0


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(encoder, "DEVICE", "cpu")
    monkeypatch.setattr(encoder, "MODELS", {"base": (32, 1, 2), "large": (64, 2, 2)})
    monkeypatch.setattr(encoder, "TOKENS", 512)
    monkeypatch.setattr(encoder, "peak", lambda thunk: 123)
    monkeypatch.setattr(measure, "WallClock", Ticks)
    monkeypatch.setattr(encoder, "capture", stand_in)


def stand_in(function):
    """A graph that runs its function again and writes over the result that it gave."""
    found = function()
    return lambda: found.last_hidden_state.copy_(function().last_hidden_state), found


def judged(lines):
    for line in lines:
        assert line["ok"] is True, line
        assert line.keys() >= SHAPE
        json.dumps(line)
        suite.summary(line)
    return {line["case"]: line for line in lines}


def test_every_row_of_the_encoder_stage(monkeypatch):
    found = judged(list(encoder.run()))
    assert len(found) == 30
    assert list(found)[:4] == [
        f"BERT-base inference {b} {p}" for b in ("4x128", "1x512") for p in ("full", "half padding")
    ]
    assert {name for name in found if "1x128" in name} == {
        f"BERT-{model} inference 1x128 full" for model in encoder.MODELS
    }
    assert {line["dtype"] for line in found.values()} == {"bfloat16", "float16", "float32"}
    for name, line in found.items():
        train = "training" in name
        assert line["path"] == "eager"  # no graph was replayed here
        assert ("stock graph" in line["peers"]) is not train
        assert ("stock cudnn" in line["peers"]) is (line["dtype"] != "float32")
        assert not name.endswith("autocast") or (train and line["dtype"] == "bfloat16")
        assert line["peers"]["stock"]["ratio"] == 1.0
        assert line["max_error"] < 0.1
    half = found["BERT-base inference 4x128 half padding"]
    real = sum(torch.linspace(1, 128, 4).long().tolist())
    assert (half["tokens"], half["seqlen"], half["padding"]) == (512, 128, 1 - real / 512)
    assert half["tokens_per_second"] == real
    assert (half["hidden"], half["layers"]) == (32, 1)
    assert half["peers"]["stock graph"]["max_error"] < 0.1
    assert half["peers"]["stock graph"]["note"] == encoder.STATIC


def test_what_was_done_before_is_left_out(monkeypatch):
    wanted = "BERT-base inference 4x128"
    names = [line["case"] for line in encoder.run(wanted, frozenset([f"{wanted} full"]))]
    kinds = ("half padding", "full float16", "half padding float16", "full float32", "half padding float32")
    assert names == [f"{wanted} {kind}" for kind in kinds]


def test_captured_calls_are_told_by_what_they_did():
    class Graph:
        def replay(self):
            return "replayed"

    graph, plain = Graph(), Graph.replay
    with measure.Replays(Graph) as replays:
        assert [graph.replay(), graph.replay()] == ["replayed"] * 2
    assert replays.count == 2
    assert Graph.replay is plain

    torch_replay = torch.cuda.CUDAGraph.replay
    try:
        torch.cuda.CUDAGraph.replay = lambda graph: None
        replay = lambda: torch.cuda.CUDAGraph.replay(None)  # noqa: E731
        assert measure.path_of(replay) == "captured"
        assert measure.path_of(replay, batches=2) == "eager"
        assert measure.path_of(lambda: (replay(), replay()), batches=3) == "captured"
        assert measure.path_of(lambda: None) == "eager"
    finally:
        torch.cuda.CUDAGraph.replay = torch_replay


def test_a_captured_line_becomes_an_entry_of_the_table(monkeypatch):
    monkeypatch.setattr(measure, "path_of", lambda thunk, batches=1: "captured")
    (line,) = encoder.run("BERT-large inference 4x128 full")
    ((arch, rows),) = faster.table([line | {"arch": 90, "device": "NVIDIA H200"}]).items()
    assert arch == "90"
    (row,) = rows
    assert (row["hidden"], row["layers"], row["tokens"], row["ratio"]) == (64, 2, 512, 1.0)
    assert "captured" in suite.summary(line)


def test_a_training_step_counts_as_captured_with_both_its_graphs(monkeypatch):
    """One whose forward alone is replayed, its backward computed again, does not; its line says so."""
    counts, said = iter((1, 2)), []
    monkeypatch.setattr(measure, "path_of", lambda thunk, batches: said.append((next(counts), batches)) or "captured")
    list(encoder.run("BERT-base training step 4x128 full"))
    assert said == [(1, 2), (2, 2)], "bfloat16 and autocast"
    monkeypatch.undo()

    class Graph:
        def replay(self):
            return None

    graph = Graph()
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
    assert measure.path_of(lambda: torch.cuda.CUDAGraph.replay(graph), 2) == "eager"
    assert measure.path_of(lambda: [torch.cuda.CUDAGraph.replay(graph) for _ in range(2)], 2) == "captured"


def test_the_wall_clock_waits_for_the_device():
    waits = []
    clock = WallClock(lambda: waits.append(len(waits)))
    seen = []
    assert clock.seconds(clock.start(lambda: seen.append(len(waits)))) >= 0
    assert (seen, len(waits)) == ([1], 2)  # idle before, done after


def test_a_failing_side_is_said_and_the_others_go_on(monkeypatch):
    def fail(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(encoder, "capture", fail)
    (line,) = encoder.run("BERT-base inference 1x128 full")
    assert line["ok"] is True
    assert "not permitted" in line["peers"]["stock graph"]["error"]
    assert line["peers"]["stock"]["ratio"] == 1.0


def test_compiled_peers_have_a_stage_of_their_own(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: asked.append(mode) or model)
    found = judged(list(compiled.run("BERT-base")))
    assert list(dict.fromkeys(asked)) == list(compiled.MODES)
    assert len(found) == len(asked) == 3 * 5 + 3 * 4  # with the single sequence, and without in training
    assert "training" in list(found)[-1]
    line = found["BERT-base inference 1x128 full, torch.compile reduce-overhead"]
    assert line["peers"]["compiled reduce-overhead"]["ratio"] == 1.0
    assert line["stage"] == "compiled"


@pytest.mark.parametrize("library", [True, False])
def test_sentences(monkeypatch, library):
    if library:
        pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(sentences, "library", lambda: library)
    monkeypatch.setattr(sentences, "SENTENCES", 40)
    monkeypatch.setattr(sentences, "WORDS", 300)
    monkeypatch.setattr(sentences, "HIDDEN", 48)
    monkeypatch.setattr(sentences, "LAYERS", 1)
    line = judged([sentences.line("sentences", Ticks())])[sentences.NAME]
    assert line["by"] == ("sentence-transformers" if library else "the same loop by hand")
    assert line["max_error"] < 0.05
    assert line["batches"] == 2
    assert 0 < line["padding"] < 0.5
    assert line["peers"]["stock"]["ratio"] == 1.0


def test_the_loop_by_hand_is_that_of_the_library(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(sentences, "WORDS", 300)
    monkeypatch.setattr(sentences, "LAYERS", 1)
    from transformers import AutoTokenizer, BertModel

    words = sentences._words()
    sentences.checkpoint(tmp_path, words)
    texts = sentences.texts(70, words)
    model = BertModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    by_hand = sentences.ByHand(model, AutoTokenizer.from_pretrained(tmp_path)).encode(texts)
    by_library = sentences.ByLibrary(tmp_path).encode(texts)
    torch.testing.assert_close(torch.tensor(by_hand), torch.tensor(by_library), atol=1e-5, rtol=1e-4)


def test_stages_run_in_the_order_in_which_they_decide(monkeypatch):
    """And the tables are written again at the end; a stage that fails stops none of the others."""
    ran, written = [], []

    def stage(name):
        ran.append(name)
        if name == "encoder":
            raise RuntimeError("no memory")
        return lambda only, done: iter([results.line(name, f"a case of {name}", ok=True) | {"arch": 90}])

    monkeypatch.setattr(suite, "stage", stage)
    monkeypatch.setattr(results, "append", written.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(verified.ENVIRONMENT, "0")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit) as ended:
        suite.main()
    assert ended.value.code == 1
    assert ran[:4] == ["build", "parity", "verified", "encoder"]
    assert ran[-2:] == ["compiled", "verified"]
    assert set(ran) == set(suite.STAGES)
    assert [line["ok"] for line in written if line["stage"] == "encoder"] == [False]
    assert "verified" not in {line["stage"] for line in written}


def test_the_page_has_the_tables_of_the_committed_lines():
    page = docs.GPU_PAGE.read_text(encoding="utf-8")
    assert page == docs.written(page, results.read()), "run: python -m benchmarks.gpu verified"


def test_tables_say_what_ran_and_how(monkeypatch):
    monkeypatch.setattr(measure, "path_of", lambda thunk, batches=1: "captured")
    lines = list(encoder.run("BERT-large inference 4x128 full"))[:1]
    old = {name: value for name, value in lines[0].items() if name not in ("path", "clock")} | {"case": "old"}
    table = docs.whole_models([*lines, old, results.line("encoder", "not begun", ok=None)])
    new, older = table.splitlines()[2:]
    assert "| BERT-large inference 4x128 full | bfloat16 | captured, wall | 1000.00 | " in new
    assert "stock 1000.00 (1.00x), " in new
    assert "| old | bfloat16 | eager, events |" in older
    assert "stock graph" in new
