"""The digest of an op's kernels: it changes with what kernels are made of, on that architecture, and with nothing else."""

import json
import shutil

import pytest

import bertfast.ops  # noqa: F401  defines the ops
from bertfast import _cuda
from bertfast.triton import sources, verified

OP = "dropout_add_norm"


@pytest.fixture
def package(tmp_path):
    copy = tmp_path / "bertfast"
    for folder in ("ops", "triton"):
        shutil.copytree(sources.PACKAGE / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def change(file, before, after):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_every_op_with_kernels_has_sources():
    for op in verified.folders():
        names = {path.relative_to(sources.PACKAGE).as_posix() for path in sources.files(op)}
        assert (f"ops/{op}/triton.py" in names) == (op != "fp8_linear"), op  # which is torch's product
        assert not any(path.stem in sources.HOST | sources.MEANING for path in sources.files(op))
    with_kernels = [op for op in verified.folders() if op != "fp8_linear"]
    assert len({sources.digest(op, 90) for op in with_kernels}) == len(with_kernels)
    assert sources.files("no such op") == []


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("ops/dropout_add_norm/triton.py", "z += residual", "z -= residual"),
        ("triton/rows.py", "1.0 / tl.sqrt(variance + eps)", "1.0 / tl.sqrt(variance)"),  # a helper of several ops
        ("triton/random.py", "import triton.language as tl", "import triton.language as tl\n\nROUNDS = 7"),
        ("triton/rows.json", '"rows": 4, "warps": 1', '"rows": 4, "warps": 2'),
    ],
)
def test_a_changed_kernel_is_another(package, file, before, after):
    digest = sources.digest(OP, 90, package)
    assert digest == sources.digest(OP, 90)
    change(package / file, before, after)
    assert sources.digest(OP, 90, package) != digest


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("ops/dropout_add_norm/triton.py", "    z += residual\n", "    z += residual  # as before\n\n"),
        ("ops/dropout_add_norm/triton.py", '"""dropout_add_norm on GPUs', '"""Said in other words'),
        ("ops/dropout_add_norm/reference.py", "z = x.to(dtype)", "z = x.to(dtype) + 0"),
        ("ops/attention/triton_forward.py", "import triton\n", "import triton\n\nOTHER = 1\n"),
        ("triton/launch.py", "def cdiv(", "def rounded_up(n: int) -> int:\n    return n\n\n\ndef cdiv("),
        ("triton/rows.json", '"reason": "predicted:', '"reason": "predicted: perhaps'),
    ],
)
def test_what_changes_no_kernel_of_an_op_does_not_count(package, file, before, after):
    digest = sources.digest(OP, 90, package)
    change(package / file, before, after)
    assert sources.digest(OP, 90, package) == digest


CANDIDATE = "linear_gelu.cheap_erf"


@pytest.mark.parametrize(
    ("file", "before", "after", "changes_owner"),
    [
        ("ops/linear_gelu/cheap_erf.py", "return 0.5 + tl.where", "return 0.25 + tl.where", False),
        ("ops/linear_gelu/cheap_erf.json", '"stages": 3', '"stages": 2', False),
        ("triton/gelu.py", "y = 0.5 * v", "y = 0.25 * v", True),  # what it leaves to the owner is its own as well
    ],
)
def test_a_candidate_has_a_digest_of_its_own(package, file, before, after, changes_owner):
    owner, candidate = (sources.digest(op, 90, package) for op in ("linear_gelu", CANDIDATE))
    assert owner != candidate == sources.digest(CANDIDATE, 90)
    change(package / file, before, after)
    assert sources.digest(CANDIDATE, 90, package) != candidate
    assert (sources.digest("linear_gelu", 90, package) != owner) is changes_owner


def test_tiles_of_newer_architectures_do_not_count(package):
    file = package / "triton" / "rows.json"
    data, before = json.loads(file.read_text()), {arch: sources.digest(OP, arch, package) for arch in (90, 100)}
    data["forward"]["entries"].append(
        {"arch": 100, "block": 256, "tile": {"rows": 1, "warps": 1}, "reason": "predicted: x"}
    )
    file.write_text(json.dumps(data))
    assert sources.digest(OP, 90, package) == before[90]
    assert sources.digest(OP, 100, package) != before[100]


def test_strings_that_look_like_comments_stay():
    code = 'def f():\n    """Doc.\n\n    More.\n    """\n    return f"# {1}"  # why\n\n\n# nothing\n'
    assert sources.code_of(code) == 'def f():\n    return f"# {1}"'


def test_a_candidate_by_cutlass_is_made_of_the_cuda_sources_too(package):
    native = package.parent / "csrc" / "cuda"
    shutil.copytree(sources.PACKAGE.parent / "csrc" / "cuda", native)
    others = ("linear", "linear_gelu", CANDIDATE, "linear_gelu.gluon")
    before = {op: sources.digest(op, 90) for op in (*others, "linear.cutlass", "linear_gelu.cutlass")}
    assert {op: sources.digest(op, 90, package) for op in before} == before
    for file, text in (("gelu_math.h", "// a word\n"), ("build.py", 'VERSION = "4.3.0"\n')):
        script = native / file
        kept = script.read_text()
        script.write_text(
            kept.replace("\n\ndef digest", f"\n\n{text}\n\ndef digest") if file == "build.py" else kept + text
        )
        _cuda.forget()
        changed = {op for op in before if sources.digest(op, 90, package) != before[op]}
        assert changed == {"linear.cutlass", "linear_gelu.cutlass"}
        script.write_text(kept)


def test_an_installed_candidate_has_the_digest_of_what_it_was_built_from(package, monkeypatch):
    digests = set()
    for built in (None, "0123456789ab", "ba9876543210"):
        monkeypatch.setattr(_cuda, "built_from", lambda built=built: built)
        digests.add(sources.digest("linear_gelu.cutlass", 90, package))
    assert len(digests) == 3
    monkeypatch.setattr(_cuda, "built_from", _cuda.sources)
    assert sources.digest("linear_gelu.cutlass", 90, package) == sources.digest("linear_gelu.cutlass", 90)
