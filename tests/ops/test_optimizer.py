"""Optimizer steps of all parameters at once, against torch's AdamW and against LAMB's algorithm, both in float64."""

import math

import pytest
import torch
from torch import nn

from bertfast.ops.optimizer import adamw_step, addresses, gradient_norm, lamb_moments, lamb_step, reference
from bertfast.testing import assert_within_budget, max_error

# Nothing, one number, an odd size, a whole chunk, one and a little, and a matrix of several.
SHAPES = [(0,), (1,), (257,), (addresses.CHUNK,), (addresses.CHUNK + 3,), (130, 160)]
DTYPES = [(torch.float32, torch.bfloat16), (torch.float32, None), (torch.bfloat16, None)]
SETTINGS = [0.9, 0.999, 1e-8, 0.1, 0.8, 0.95, 1e-6, 0.0]  # of two groups
COLUMNS = ("weights", "gradients", "means", "squares", "steps", "copies")


def make(dtype, copy_dtype=None, shapes=SHAPES, scale=1.0):
    """Lists of an update in the middle of a run; every other parameter has a copy."""
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    gradients = [(scale * torch.randn(shape)).to(dtype) for shape in shapes]
    means = [(0.1 * torch.randn(shape)).to(dtype) for shape in shapes]
    squares = [torch.rand(shape).to(dtype) for shape in shapes]
    steps = [torch.tensor(float(number)) for number in range(len(shapes))]
    copies = [
        torch.full(shape, 7.0, dtype=copy_dtype) if copy_dtype and number % 2 else torch.empty(0)
        for number, shape in enumerate(shapes)
    ]
    return weights, gradients, means, squares, steps, copies


def sizes(columns):
    return [len(columns[0]) - 2, 2]


def clone(columns, dtype=None):
    return tuple([t.to(dtype or t.dtype, copy=True) for t in column] for column in columns)


def adamw_by_torch(columns, rate, max_norm=0.0, dtype=None):
    """torch's AdamW, one parameter at a time, on copies of the columns in `dtype`."""
    weights, gradients, means, squares, steps, copies = clone(columns, dtype)
    parameters = [nn.Parameter(weight) for weight in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if max_norm:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    first = 0
    for number, size in enumerate(sizes(columns)):
        beta1, beta2, eps, decay = SETTINGS[number * 4 : number * 4 + 4]
        own = parameters[first : first + size]
        optimizer = torch.optim.AdamW(own, lr=rate, betas=(beta1, beta2), eps=eps, weight_decay=decay, foreach=False)
        for place, parameter in enumerate(own, first):
            optimizer.state[parameter] = {
                "step": steps[place].float(),
                "exp_avg": means[place],
                "exp_avg_sq": squares[place],
            }
        optimizer.step()
        first += size
    weights = [p.detach() for p in parameters]
    return weights, gradients, means, squares, [step.float() + 1 for step in steps], copies


def assert_columns_within_budget(ours, eager, exact):
    for name, *columns in zip(COLUMNS[:4], ours, eager, exact, strict=False):
        if name != "gradients":
            for number, tensors in enumerate(zip(*columns, strict=True)):
                assert_within_budget(*tensors, what=f"{name} {number}")


@pytest.mark.parametrize(("dtype", "copy_dtype"), DTYPES)
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
def test_adamw_is_torchs(implementation, dtype, copy_dtype, max_norm):
    ours = make(dtype, copy_dtype)
    before = clone(ours)
    norm = implementation.gradient_norm(ours[1]) if max_norm else None
    rate = torch.tensor(0.01)
    assert implementation.adamw_step(*ours, sizes(ours), SETTINGS, rate, norm, max_norm, None) is None
    eager = adamw_by_torch(before, 0.01, max_norm)
    exact = adamw_by_torch(before, float(rate), max_norm, torch.float64)
    assert_columns_within_budget(ours, eager, exact)
    assert all(torch.equal(a, b) for a, b in zip(ours[1], before[1], strict=True)), "gradients are left as they are"
    for weight, copy, step, old in zip(ours[0], ours[5], ours[4], before[4], strict=True):
        assert step == old + 1
        assert copy.numel() == 0 or torch.equal(copy, weight.to(copy.dtype))


def lamb_by_torch(columns, rate, dtype=None):
    """LAMB written out in torch's functions, in `dtype`."""
    weights, gradients, means, squares, steps, copies = clone(columns, dtype)
    groups = [group for group, size in enumerate(sizes(columns)) for _ in range(size)]
    for w, g, m, v, step, group in zip(weights, gradients, means, squares, steps, groups, strict=True):
        beta1, beta2, eps, decay = SETTINGS[group * 4 : group * 4 + 4]
        t = float(step) + 1
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        direction = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps) + decay * w
        size, length = w.norm(), direction.norm()
        trust = size / length if decay and size > 0 and length > 0 else 1.0
        w.sub_(rate * trust * direction)
    return weights, gradients, means, squares, [step + 1 for step in steps], copies


@pytest.mark.parametrize(("dtype", "copy_dtype"), DTYPES)
def test_lamb_is_the_papers(implementation, dtype, copy_dtype):
    ours = make(dtype, copy_dtype)
    ours[0][2].zero_()  # a weight without length: trust is 1
    before = clone(ours)
    sums = implementation.lamb_moments(*ours[:5], sizes(ours), SETTINGS, None, 0.0, None)
    assert sums.dtype == torch.float32
    assert sums.shape == (len(SHAPES), 2)
    implementation.lamb_step(ours[0], *ours[2:], sizes(ours), SETTINGS, torch.tensor(0.01), sums, None)
    exact = lamb_by_torch(before, float(torch.tensor(0.01)), torch.float64)
    assert_columns_within_budget(ours, lamb_by_torch(before, 0.01), exact)
    for number, weight in enumerate(before[0]):
        torch.testing.assert_close(sums[number, 0], weight.float().square().sum(), rtol=1e-5, atol=0)
    for weight, copy, step, old in zip(ours[0], ours[5], ours[4], before[4], strict=True):
        assert step == old + 1
        assert copy.numel() == 0 or torch.equal(copy, weight.to(copy.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lamb_clips(implementation, dtype):
    columns = make(dtype)
    clipped = clone(columns)
    norm = implementation.gradient_norm(columns[1])
    for gradient in clipped[1]:
        gradient.mul_(0.5 / norm)
    ours = implementation.lamb_moments(*columns[:5], sizes(columns), SETTINGS, norm, 0.5, None)
    torch.testing.assert_close(
        ours, implementation.lamb_moments(*clipped[:5], sizes(columns), SETTINGS, None, 0.0, None), rtol=0.02, atol=1e-4
    )
    for a, b in zip(columns[2], clipped[2], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_norm(implementation, dtype, scale):
    gradients = make(dtype, scale=scale)[1]
    norm = implementation.gradient_norm(gradients)
    exact = torch.cat([g.double().flatten() for g in gradients]).norm()
    eager = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]))
    assert norm.dtype == torch.float32
    assert_within_budget(norm, eager, exact)
    assert torch.equal(norm, implementation.gradient_norm(gradients)), "the same bits every time"
    gradients[4][-1] = math.inf
    assert implementation.gradient_norm(gradients) == math.inf
    gradients[2][0] = math.nan
    assert implementation.gradient_norm(gradients).isnan()


def test_norm_of_nothing(implementation):
    assert implementation.gradient_norm([]) == 0.0
    assert implementation.gradient_norm([torch.empty(0), torch.empty(3, 0)]) == 0.0
    implementation.adamw_step([], [], [], [], [], [], [], [], torch.tensor(0.1), None, 0.0, None)


@pytest.mark.parametrize("withheld", [0.0, 1.0])
def test_a_withheld_step_changes_no_bit(implementation, withheld):
    """Whatever the gradients are: they are what a step is withheld for."""
    for lamb in (False, True):
        ours = make(torch.float32, torch.bfloat16)
        ours[1][3][5] = math.nan
        before, flag, rate = clone(ours), torch.tensor(withheld), torch.tensor(0.01)
        norm = implementation.gradient_norm(ours[1])
        if lamb:
            sums = implementation.lamb_moments(*ours[:5], sizes(ours), SETTINGS, norm, 1.0, flag)
            implementation.lamb_step(ours[0], *ours[2:], sizes(ours), SETTINGS, rate, sums, flag)
            assert not withheld or not sums.any()
        else:
            implementation.adamw_step(*ours, sizes(ours), SETTINGS, rate, norm, 1.0, flag)
        for name, now, old in zip(COLUMNS, ours, before, strict=True):
            for a, b in zip(now, old, strict=True):
                same = torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))
                assert same if withheld or name == "gradients" or not a.numel() else not same


def test_not_finite_gradients_reach_what_they_touch(implementation):
    ours = make(torch.float32)
    ours[1][5][1, 1], ours[1][5][2, 2] = math.nan, math.inf
    implementation.adamw_step(*ours, sizes(ours), SETTINGS, torch.tensor(0.01), None, 0.0, None)
    assert ours[0][5].isnan().nonzero().tolist() == [[1, 1], [2, 2]]
    assert all(weight.isfinite().all() for weight in ours[0][:5])


def test_rates_of_groups(implementation):
    for rates in (torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.5], dtype=torch.float64)):
        ours = make(torch.float32)
        before = clone(ours)
        implementation.adamw_step(*ours, sizes(ours), SETTINGS, rates, None, 0.0, None)
        moved = [not torch.equal(a, b) for a, b in zip(ours[0], before[0], strict=True)]
        assert moved == [False, False, False, False, True, True]


def test_many_tiny_parameters_and_one_group(implementation):
    ours = make(torch.float32, shapes=[(number % 5 + 1,) for number in range(300)])
    before = clone(ours)
    step = [0.9, 0.999, 1e-8, 0.0]
    implementation.adamw_step(*ours, [300], step, torch.tensor(0.01), None, 0.0, None)
    wanted = clone(before)
    reference.adamw_step(*wanted, [300], step, torch.tensor(0.01), None, 0.0, None)
    for a, b in zip(ours[0], wanted[0], strict=True):
        torch.testing.assert_close(a, b)


def test_numbers_in_any_place(implementation):
    """Tensors that are not aligned, dense in another order, or not dense: copies of the same numbers tell what is right."""
    plain = make(torch.float32, torch.bfloat16, shapes=[(40, 30), (64, 8), (9000,), (7, 9)])
    wanted = clone(plain)
    odd = []
    for column in plain[:4]:
        shifted = torch.empty(9001)[1:].copy_(column[2])
        turned = column[1].t().contiguous().t()
        odd.append([column[0].clone(), turned, shifted, column[3].clone()])
    odd += [plain[4], [torch.empty(0), plain[5][1].t().contiguous().t(), torch.empty(0), plain[5][3]]]
    for strided in (False, True):
        if strided:  # a gradient with gaps: torch's functions for all
            odd[1][3] = torch.randn(7, 18)[:, ::2]
            wanted[1][3].copy_(odd[1][3])
        implementation.adamw_step(*odd, [2, 2], SETTINGS, torch.tensor(0.01), None, 0.0, None)
        reference.adamw_step(*wanted, [2, 2], SETTINGS, torch.tensor(0.01), None, 0.0, None)
        for now, right in zip(odd, wanted, strict=True):
            for a, b in zip(now, right, strict=True):
                if a.numel():
                    torch.testing.assert_close(a, b)


def test_moments_and_copies_of_other_dtypes(implementation):
    """bfloat16 weights with float32 moments, and two dtypes in one call: a launch for each."""
    columns = make(torch.bfloat16, None, shapes=[(300,), (20, 30), (9000,), (64,)])
    for column in columns[2:4]:
        column[:2] = [t.float() for t in column[:2]]
    wanted = clone(columns)
    implementation.adamw_step(*columns, [4], SETTINGS[:4], torch.tensor(0.01), None, 0.0, None)
    reference.adamw_step(*wanted, [4], SETTINGS[:4], torch.tensor(0.01), None, 0.0, None)
    for now, right in zip(columns, wanted, strict=True):
        for a, b in zip(now, right, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_float64_takes_the_reference(implementation):
    columns = make(torch.float64, shapes=[(30,), (4, 5), (6,)])
    exact = adamw_by_torch(columns, 0.01)
    implementation.adamw_step(
        *columns, sizes(columns), SETTINGS, torch.tensor(0.01, dtype=torch.float64), None, 0.0, None
    )
    assert max_error(columns[0][0], exact[0][0]) < 1e-12


def test_tables_notice_what_moved(triton_ops):
    """A table is kept while tensors lie where they lay; in a step with other gradients, or other settings, there is another."""
    columns = addresses.Columns(*make(torch.float32))
    first = addresses.table(columns, [6], SETTINGS[:4])
    assert addresses.table(columns, [6], SETTINGS[:4]) is first
    absent = columns._replace(copies=[torch.empty(0) for _ in columns.copies])
    assert addresses.table(absent, [6], SETTINGS[:4]) is first, "whatever stands for an absent copy"
    assert addresses.table(columns, [6], [0.9, 0.999, 1e-8, 0.5]) is not first
    moved = columns._replace(gradients=[g.clone() for g in columns.gradients])
    second = addresses.table(moved, [6], SETTINGS[:4])
    assert second is not first
    assert second.chunks is first.chunks, "the chunks depend on sizes alone"
    assert second.rows.view(-1)[addresses.FIELDS + addresses.GRADIENT] == moved.gradients[1].data_ptr()
    assert addresses.table(columns, [6], SETTINGS[:4]) is first
    narrow = columns._replace(gradients=[g.bfloat16() for g in columns.gradients])
    assert {part.gradient for part in addresses.table(narrow, [6], SETTINGS[:4]).parts} == {torch.bfloat16}
    shifted = columns._replace(gradients=[torch.randn(g.numel() + 1)[1:].view(g.shape) for g in columns.gradients])
    third = addresses.table(shifted, [6], SETTINGS[:4])
    assert third.chunks is first.chunks
    wide = third.rows[: 6 * addresses.FIELDS].view(6, -1)[:, addresses.WIDE]
    assert wide.tolist() == [1, 0, 0, 0, 0, 0], "an empty one lies nowhere"


def test_placed_tables_stay(triton_ops, monkeypatch):
    columns = make(torch.float32)
    placed, before = addresses.Placed(), clone(columns)
    arguments = (*columns, sizes(columns), SETTINGS, torch.tensor(0.01), None, 0.0, None)
    with addresses.placing(placed):
        triton_ops.launcher("adamw_step")(*arguments)
        triton_ops.launcher("gradient_norm")(columns[1])
    assert all(
        torch.equal(a, b) for now, old in zip(columns, before, strict=True) for a, b in zip(now, old, strict=True)
    )
    made = [entry.table for entry in placed.entries]
    assert len(made) == 2
    addresses._recent.clear()
    found = addresses.table(addresses.Columns(*columns), sizes(columns), SETTINGS)
    assert found is made[0]
    # In a capture nothing can come from the host.
    monkeypatch.setattr(addresses, "_stream", lambda device: 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert addresses.table(addresses.Columns(*columns), sizes(columns), SETTINGS) is made[0]
    other = [g.clone() for g in columns[1]]
    with pytest.raises(RuntimeError, match="not placed"):
        addresses.table(addresses.Columns(gradients=other))
    del placed, found, made
    with pytest.raises(RuntimeError, match="not placed"):
        addresses.table(addresses.Columns(*columns), sizes(columns), SETTINGS)


def test_public_functions_check():
    columns = make(torch.float32, shapes=[(3,), (4,)])
    weights, gradients, means, squares, steps, copies = columns
    rate = torch.tensor(0.1)
    with pytest.raises(ValueError, match="gradients has 1 tensors"):
        adamw_step(weights, gradients[:1], means, squares, steps, copies, [2], SETTINGS[:4], rate)
    with pytest.raises(ValueError, match="groups of"):
        adamw_step(*columns, [1], SETTINGS[:4], rate)
    with pytest.raises(ValueError, match="settings"):
        lamb_moments(*columns[:5], [2], SETTINGS)
    with pytest.raises(ValueError, match="squares 1 has shape"):
        lamb_step(weights, means, [squares[0], means[0]], steps, copies, [2], SETTINGS[:4], rate, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"rates have shape \(3,\)"):
        adamw_step(*columns, [2], SETTINGS[:4], torch.ones(3))
    with pytest.raises(ValueError, match="groups of"):
        adamw_step(*columns, [3, -1], SETTINGS[:4] * 2, rate)
    with pytest.raises(ValueError, match="copies 0 has shape"):
        adamw_step(*columns[:5], [torch.ones(1, 1), copies[1]], [2], SETTINGS[:4], rate)
    with pytest.raises(ValueError, match=r"sums have shape \(1, 2\)"):
        lamb_step(weights, *columns[2:], [2], SETTINGS[:4], rate, torch.ones(1, 2))
    wanted = clone(columns)
    reference.adamw_step(*wanted, [2], SETTINGS[:4], rate, None, 0.0, None)
    adamw_step(*columns, [2], SETTINGS[:4], rate)
    assert all(torch.equal(a, b) for a, b in zip(weights, wanted[0], strict=True))
    assert gradient_norm([torch.tensor([3.0]), torch.tensor([4.0])]) == 5.0
    sums = lamb_moments(*columns[:5], [2], SETTINGS[:4])
    lamb_step(weights, *columns[2:], [2], SETTINGS[:4], rate, sums)
    assert not torch.equal(weights[0], wanted[0][0])


def test_opcheck():
    ops = torch.ops.bertfast
    columns = make(torch.float32, torch.bfloat16, shapes=[(3,), (4, 2), (5,)])
    rest = ([1, 2], SETTINGS)
    norm, flag, rate = torch.tensor(2.0), torch.tensor(0.0), torch.tensor(0.1)
    torch.library.opcheck(ops.gradient_norm.default, (columns[1],))
    torch.library.opcheck(ops.adamw_step.default, (*clone(columns), *rest, rate, norm, 1.0, flag))
    torch.library.opcheck(ops.lamb_moments.default, (*clone(columns)[:5], *rest, norm, 1.0, flag))
    torch.library.opcheck(ops.lamb_step.default, (columns[0], *clone(columns)[2:], *rest, rate, torch.ones(3, 2), flag))
