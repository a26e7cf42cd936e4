"""The encoder as a map over a Ray Data set, on a local cluster of two workers."""

import os
import signal

import numpy as np
import pytest
from encoding_cases import TEXTS

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install --no-build-isolation -e '.[ray]'")
pytest.importorskip("ray.data")

import bertfast  # noqa: E402
from bertfast.encoding.ray import BatchEncoder, encode_dataset  # noqa: E402
from bertfast.tasks.lines import DataError  # noqa: E402

# Workers import torch and transformers, which takes minutes where many processes share a core: no limit may be shorter.
PATIENCE = {
    "worker_niceness": 0,  # 15 is Ray's own: beside other work such a worker hardly runs
    "worker_register_timeout_seconds": 1800,
    "health_check_timeout_ms": 600_000,
    "health_check_initial_delay_ms": 600_000,
    "gcs_server_request_timeout_seconds": 600,
    "memory_monitor_refresh_ms": 0,  # which kills workers where others have filled the memory
    "prestart_worker_first_driver": False,  # processes that nobody would use
    "enable_worker_prestart": False,
}


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine, without a dashboard, whose workers find the tests' modules."""
    before = signal.getsignal(signal.SIGTERM)  # which Ray replaces, and does not give back
    with pytest.MonkeyPatch.context() as patch:
        here = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(bertfast.__file__))]
        patch.setenv("PYTHONPATH", os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        options = {
            "num_cpus": 3,  # two for the encoders, one for the tasks that write
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "ERROR",
            "object_store_memory": 100 << 20,
            "_system_config": PATIENCE,
        }
        for last in (False, False, True):
            try:
                ray.init(**options)
                break
            except Exception:  # half a minute is what Ray grants its own processes to start
                ray.shutdown()
                if last:
                    raise
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()
    signal.signal(signal.SIGTERM, before)


class DiesOnce(BatchEncoder):
    """A worker that ends its own process at its second batch, the first time that any does."""

    def __init__(self, model, marker, **options):
        super().__init__(model, **options)
        self.marker, self.batches = marker, 0

    def __call__(self, batch):
        self.batches += 1
        if self.batches == 2:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os._exit(1)
        encoded = super().__call__(batch)
        assert any("fast" in outcome for outcome in bertfast.report(self.encoder.model).rows[0].calls)
        return encoded


@pytest.mark.tool("Ray Data", "encode_dataset; a worker that dies", "fast")
def test_a_worker_that_dies_loses_and_doubles_nothing(cluster, checkpoint, encoder, tmp_path, monkeypatch):
    from bertfast.encoding import ray as module

    marker = tmp_path / "died"
    monkeypatch.setattr(module, "BatchEncoder", DiesOnce)
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS * 2)]
    dataset = ray.data.from_items(rows, override_num_blocks=6)
    encoded = encode_dataset(dataset, str(checkpoint), workers=2, batch_size=10, marker=str(marker))
    encoded.write_parquet(str(tmp_path / "out"))
    assert marker.exists(), "a worker died"
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "out").to_pydict()
    assert sorted(table["id"]) == list(range(len(rows)))
    assert [table["text"][place] for place in np.argsort(table["id"])] == TEXTS * 2
    made = np.array(table["embedding"], np.float32)[np.argsort(table["id"])]
    np.testing.assert_allclose(made, encoder.encode(TEXTS * 2), atol=1e-6)


def test_rows_without_text_are_named(checkpoint):
    encode = BatchEncoder(str(checkpoint), device="cpu")
    batch = {"key": np.array([7, 8]), "text": np.array(["a", None], object)}
    with pytest.raises(DataError, match=r"row 1 of a batch, .*8.*: 'text' is null"):
        encode(batch)
    with pytest.raises(DataError, match="no column 'text'; the data set has key"):
        encode({"key": batch["key"]})
    assert encode({"text": np.array(["a"], object)})["embedding"].shape == (1, 32)
