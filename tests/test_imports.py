"""What `import bertfast` may need: torch, and nothing else. Each case runs in a fresh process, in which only torch is there."""

import json
import subprocess
import sys

import pytest

# Importing torch takes two seconds of processor time, so one process does it and forks another for each line it is given.
FORKS = """
import json, os, sys, traceback
import torch
for line in sys.stdin:
    code, environment, out = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(environment)
        for number in (1, 2):
            os.dup2(os.open(f"{out}.{number}", os.O_WRONLY | os.O_CREAT), number)
        status = 1
        try:
            exec(code, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def parent():
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as made:
        yield made
        made.stdin.close()


@pytest.fixture
def python(parent, tmp_path):
    """What a program prints in a process of its own, which must end well."""
    count = 0

    def run(code: str, **environment: str) -> str:
        nonlocal count
        count += 1
        out = tmp_path / f"printed-{count}"
        parent.stdin.write(json.dumps([code, environment, str(out)]) + "\n")
        parent.stdin.flush()
        status = parent.stdout.readline().strip()
        printed, errors = (out.with_name(f"{out.name}.{number}") for number in (1, 2))
        assert status == "0", f"status {status}: {errors.read_text()[-3000:]}"
        return printed.read_text().strip()

    return run


def without(module: str) -> str:
    """Code that makes `import module` fail, as on a machine that does not have it."""
    return f"import sys; sys.modules[{module!r}] = None\n"


@pytest.mark.parametrize("module", ["transformers", "triton", "matplotlib", "typer", "rich"])
def test_import_without(python, module):
    python(without(module) + "import bertfast; bertfast.nn.BertLayer; bertfast.ops.attention")


@pytest.mark.parametrize("module", ["transformers", "safetensors", "tokenizers", "datasets"])
def test_models_import_without(python, module):
    python(without(module) + "import bertfast; bertfast.models.BertModel; from bertfast.models import BertConfig")


def test_models_are_imported_when_first_asked_for(python):
    code = "import sys, bertfast; a = 'bertfast.models' in sys.modules; bertfast.models; print(a, 'bertfast.models' in sys.modules)"
    assert python(code) == "False True"


def test_saving_without_safetensors_says_what_to_install(python, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    code = without("safetensors") + (
        "from bertfast.models import BertConfig, BertModel\n"
        "model = BertModel(BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))\n"
        f"try:\n    model.save_pretrained({str(folder)!r})\nexcept ImportError as error:\n    print(error)"
    )
    assert "-e '.[data]'" in python(code)
    assert not list(folder.iterdir())


def test_import_does_not_pull_in_optional_packages(python):
    code = (
        "import torch, sys; before = set(sys.modules); import bertfast; new = set(sys.modules) - before;"
        "print(sorted({'transformers', 'triton', 'matplotlib', 'typer', 'safetensors'} & new))"
    )
    assert python(code) == "[]"


def test_asking_what_is_verified_does_not_load_triton(python):
    code = (
        "import sys; from bertfast.triton.verified import verified; verified('x', 90); print('triton' in sys.modules)"
    )
    assert python(without("triton") + code) == "True"
    assert python(code) == "False"


def test_ops_without_extension(python):
    code = (
        "import torch, bertfast; from bertfast import _ext; assert _ext.load() is None;"
        "assert 'BERTFAST_DISABLE_EXT' in _ext.why_absent(); x = torch.randn(3, 8, requires_grad=True);"
        "bertfast.ops.dropout_add_norm(x, x, torch.ones(8), torch.zeros(8)).sum().backward();"
        "print(x.grad.shape)"
    )
    assert python(code, BERTFAST_DISABLE_EXT="1") == "torch.Size([3, 8])"


def test_encoding_without_transformers_says_what_to_install(python, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code = without("transformers") + (
        f"import bertfast\ntry:\n    bertfast.Encoder({str(tmp_path)!r})\nexcept ImportError as error:\n    print(error)"
    )
    assert "-e '.[hf]'" in python(code)


def test_optimize_without_transformers_says_what_to_install(python):
    code = without("transformers") + (
        "import bertfast, torch\ntry:\n    bertfast.optimize(torch.nn.Linear(2, 2))\nexcept ImportError as error:\n    print(error)"
    )
    assert "-e '.[hf]'" in python(code)


def test_broken_extension_names_both_versions(python, tmp_path):
    # A _C that is found but does not load must not become a silent fallback.
    code = (
        "import sys, torch, importlib.util, types\n"
        "import bertfast._ext as e\n"
        "e._module = None\n"
        "sys.modules['bertfast._C'] = None\n"
        "import bertfast; delattr(bertfast, '_C') if hasattr(bertfast, '_C') else None\n"
        "importlib.util.find_spec = lambda name: True\n"
        "sys.modules['bertfast._build_info'] = types.SimpleNamespace(TORCH='9.9.9')\n"
        "bertfast._build_info = sys.modules['bertfast._build_info']\n"
        "try:\n    e.load()\nexcept ImportError as error:\n    print(error)"
    )
    message = python(code)
    assert "9.9.9" in message
    assert "torch" in message
    assert "pip install" in message
