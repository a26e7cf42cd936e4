import pytest
from task_cases import tokenizer_folder

from bertfast.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def english(tmp_path_factory):
    pytest.importorskip("tokenizers")
    return load_tokenizer(tokenizer_folder(tmp_path_factory.mktemp("english")))


@pytest.fixture(scope="session")
def japanese(tmp_path_factory):
    pytest.importorskip("fugashi")
    pytest.importorskip("unidic_lite")
    return load_tokenizer(tokenizer_folder(tmp_path_factory.mktemp("japanese"), "ja"))
