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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster on this machine, without a dashboard."""
    before = signal.getsignal(signal.SIGTERM)  # which Ray replaces, and does not give back
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        here = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
        ray.init(
            num_cpus=3,  # two for the encoders, one for the tasks that write
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 << 20,
            runtime_env={"env_vars": {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}},
        )
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
    dataset = ray.data.from_items(rows, override_num_blocks=12)
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
