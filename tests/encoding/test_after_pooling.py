"""What pooled vectors go through: a row's bits whatever stands beside it, and what is refused of a module's files."""

import json

import pytest
import torch
from torch import nn

from bertfast import _ext
from bertfast.encoding import after_pooling
from bertfast.encoding.after_pooling import AfterPooling, Dense, LayerNorm, Normalize
from bertfast.encoding.checkpoint import RecipeError
from bertfast.ops import packed_linear

save_file = pytest.importorskip("safetensors.torch").save_file
CONFIG = {"in_features": 6, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


@pytest.fixture
def folder(tmp_path):
    """Of a Dense from 6 numbers to 4."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"linear.weight": torch.randn(4, 6), "linear.bias": torch.randn(4)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU, nn.Mish])
def test_bits_depend_on_neither_the_other_rows_nor_threads(tmp_path, threads, activation):
    if _ext.why_absent() is not None or not packed_linear.available(torch.float32, 48):
        pytest.skip("no kernels of ours for float32 here")
    dense = Dense(tmp_path, 48, 23, False, f"torch.nn.{activation.__name__}", residual=True)
    weights = {"linear.weight": torch.randn(23, 48), "residual.weight": torch.randn(23, 48)}
    save_file(weights, tmp_path / "model.safetensors")
    after = AfterPooling([dense, Normalize()], None, False, 48)
    rows = torch.randn(333, 48)
    whole = after(rows)
    for count in (1, 2):
        threads(count)
        for size in (1, 5, 32, 100):
            assert torch.equal(torch.cat([after(part) for part in rows.split(size)]), whole), (size, count)


@pytest.mark.parametrize("kind", after_pooling._ACTIVATIONS)
def test_every_activation_has_the_name_that_sentence_transformers_writes(folder, kind):
    fullname = pytest.importorskip("sentence_transformers.util").fullname
    (folder / "config.json").write_text(json.dumps({**CONFIG, "activation_function": fullname(kind())}))
    (dense,) = after_pooling.read("Dense", folder)
    rows = torch.randn(3, 6)
    after = AfterPooling([dense], None, False, 6)
    torch.testing.assert_close(after(rows), kind()(after.steps[0].linear(rows)))


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        ("Dense", None, r"config\.json is missing"),
        ("Dense", {"activation_function": "torch.nn.modules.activation.PReLU"}, r"activation_function is '.*PReLU'.*Tanh, ReLU"),
        ("Dense", {"activation_function": "my.Tanh"}, r"activation_function is 'my\.Tanh'"),
        ("Dense", {"in_features": "6"}, r"in_features is '6', and a positive integer is expected: copy"),
        ("Dense", {"module_input_name": "token_embeddings"}, r"module_input_name is 'token_embeddings', and the pooled vectors"),
        ("Dense", {"module_output_name": "other"}, r"module_output_name is 'other'"),
        ("Dense", {"scale": 2.0}, r"scale is 2\.0, which is not computed here: use sentence-transformers"),
        ("LayerNorm", {}, r"dimension is None"),
        ("Normalize", {"module_input_name": "token_embeddings"}, r"module_input_name is 'token_embeddings'"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(folder, kind, config, said):
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(json.dumps({**(CONFIG if kind == "Dense" else {}), **config}))
    with pytest.raises(RecipeError, match=said):
        after_pooling.read(kind, folder)


def test_a_setting_that_is_off_is_none(folder):
    (folder / "config.json").write_text(
        json.dumps({**CONFIG, "scale": None, "gate": False, "module_output_name": None})
    )
    assert after_pooling.read("Dense", folder) == [Dense(folder, 6, 4, True, CONFIG["activation_function"], False)]


def test_weights_that_do_not_fit(folder):
    for changed, said in (
        ({"bias": False}, r"linear\.bias is there, and config\.json says that there is none"),
        ({"out_features": 5}, r"linear\.bias is \[4\], and config\.json says \[5\]"),
        ({"in_features": 7}, r"linear\.weight is \[4, 6\], and config\.json says \[4, 7\]"),
        ({"use_residual": True}, r"residual\.weight is missing"),
    ):
        (folder / "config.json").write_text(json.dumps({**CONFIG, **changed}))
        (dense,) = after_pooling.read("Dense", folder)
        with pytest.raises(
            RecipeError, match=rf"model\.safetensors cannot be read as config\.json beside it says \({said}\): copy"
        ):
            AfterPooling([dense], None, False, dense.inputs)
    (folder / "model.safetensors").write_bytes(b"none")
    with pytest.raises(RecipeError, match=r"model\.safetensors cannot be read"):
        AfterPooling([dense], None, False, 6)


def test_sizes_that_do_not_follow_each_other(folder):
    dense = Dense(folder, 6, 4, True, "torch.nn.Tanh", False)
    for modules, made, expected in (
        ([dense], 7, (6, 7)),
        ([dense, dense], 6, (6, 4)),
        ([LayerNorm(folder, 5)], 6, (5, 6)),
    ):
        said = (
            r"config\.json is for vectors of {} numbers, and what comes before makes {}: leave the pooling as".format(
                *expected
            )
        )
        with pytest.raises(RecipeError, match=said):
            AfterPooling(modules, None, False, made)
