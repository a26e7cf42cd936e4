import pytest
from encoding_cases import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny BERT with mean pooling and normalisation."""
    pytest.importorskip("transformers")
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def encoder(checkpoint):
    from bertfast import Encoder

    return Encoder(checkpoint, device="cpu")
