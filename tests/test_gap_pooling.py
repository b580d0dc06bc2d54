"""Global poolings: plain and weighted means, their limits, and what they refuse."""

import math

import pytest
import torch
from replicas import apart
from torch import Tensor, nn

from camlucida.errors import InputError
from camlucida.gap import GeneralizedMeanPooling, GlobalAveragePooling, GlobalMaxPooling, LogSumExpPooling

SPACES = [(7,), (4, 5), (3, 4, 5)]
spaces = pytest.mark.parametrize("space", SPACES, ids=["1d", "2d", "3d"])
POOLS = [GlobalAveragePooling, GlobalMaxPooling, GeneralizedMeanPooling, LogSumExpPooling]
pools = pytest.mark.parametrize("make", POOLS)


def acts(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64) * 3


def numbers(act: Tensor, b: int, c: int) -> list[float]:
    return act[b, c].flatten().tolist()


@spaces
def test_each_pool_is_its_formula_in_loops(space: tuple[int, ...]) -> None:
    act, z = acts(2, 3, *space), math.prod(space)
    gap, gmp, gem, lse = (make().double() for make in POOLS)
    for b in range(2):
        for c in range(3):
            v = numbers(act, b, c)
            assert math.isclose(gap(act)[b, c].item(), sum(v) / z, rel_tol=1e-12)
            assert gmp(act)[b, c].item() == max(v)
            power = (sum(max(a, 1e-6) ** 3 for a in v) / z) ** (1 / 3)
            assert math.isclose(gem(act)[b, c].item(), power, rel_tol=1e-12)
            smooth = math.log(sum(math.exp(5 * a) for a in v) / z) / 5
            assert math.isclose(lse(act)[b, c].item(), smooth, rel_tol=1e-12)


@spaces
def test_weights_make_a_weighted_mean(space: tuple[int, ...]) -> None:
    act, weight = acts(2, 3, *space), acts(2, *space)
    expected = (act * weight[:, None]).flatten(2).sum(2) / weight.flatten(1).sum(1)[:, None]
    assert apart(GlobalAveragePooling()(act, weight), expected) < 1e-12
    assert apart(GlobalAveragePooling()(act, weight[:, None] * 7), expected) < 1e-12


@spaces
@pools
@pytest.mark.parametrize("padding", [0.0, 1e6, -1e6, math.nan, math.inf])
def test_a_mask_equals_cropping(make: type[nn.Module], space: tuple[int, ...], padding: float) -> None:
    inner = acts(2, 3, *space) - (0 if make is GeneralizedMeanPooling else 4)  # all below what the padding is read as
    padded = torch.full((2, 3, *(s + 2 for s in space)), padding, dtype=torch.float64)
    mask = torch.zeros(2, 1, *padded.shape[2:], dtype=torch.bool)
    where = (..., *(slice(1, 1 + s) for s in space))
    padded[where], mask[where] = inner, True
    padded.requires_grad_()
    pool = make().double()
    assert apart(pool(padded, mask), pool(inner)) < 1e-12
    pool(padded, mask).sum().backward()
    assert padded.grad is not None and padded.grad.isfinite().all()
    assert (padded.grad[~mask.expand_as(padded)] == 0).all()


@spaces
@pools
def test_a_constant_weight_changes_nothing_and_keepdim_keeps_the_axes(
    make: type[nn.Module], space: tuple[int, ...]
) -> None:
    act, pool = acts(2, 3, *space), make(keepdim=True).double()
    assert pool(act).shape == (2, 3, *(1 for _ in space))
    assert apart(pool(act).flatten(1), make().double()(act)) == 0
    assert apart(pool(act, torch.full((2, *space), 0.3, dtype=torch.float64)), pool(act)) < 1e-12


@spaces
def test_the_generalised_mean_lies_between_mean_and_maximum(space: tuple[int, ...]) -> None:
    act = acts(2, 3, *space) + 0.1
    mean, top = GlobalAveragePooling()(act), GlobalMaxPooling()(act)
    assert apart(GeneralizedMeanPooling(p=1.0).double()(act), mean) < 1e-12
    assert apart(GeneralizedMeanPooling(p=1e5).double()(act), top) < 1e-3
    assert (GeneralizedMeanPooling(p=3.0).double()(act) > mean).all()
    assert (GeneralizedMeanPooling(p=3.0).double()(act) < top).all()
    scaled = GeneralizedMeanPooling(p=3.0).double()
    assert apart(scaled(act * 4), scaled(act) * 4) < 1e-12  # homogeneous of degree one (P4)


@spaces
def test_log_sum_exp_lies_between_mean_and_maximum(space: tuple[int, ...]) -> None:
    act = acts(2, 3, *space) - 1.5
    mean, top = GlobalAveragePooling()(act), GlobalMaxPooling()(act)
    assert apart(LogSumExpPooling(r=1e-7).double()(act), mean) < 1e-6
    assert apart(LogSumExpPooling(r=1e5).double()(act), top) < 1e-3
    assert (LogSumExpPooling().double()(act) > mean).all() and (LogSumExpPooling().double()(act) < top).all()
    shifted = LogSumExpPooling().double()
    assert apart(shifted(act + 2), shifted(act) + 2) < 1e-12


def test_large_powers_do_not_overflow_in_single_precision() -> None:
    act = torch.tensor([[[1e3, 20.0, 0.0, -5.0]]])
    for pool in (GeneralizedMeanPooling(p=1000.0), LogSumExpPooling(r=1000.0)):
        assert math.isclose(pool(act).item(), 1e3, rel_tol=2e-3)


def test_p_and_r_learn_where_they_may() -> None:
    act = acts(2, 3, 4, 5)
    for pool, name, learns in (
        (GeneralizedMeanPooling(), "p", True), (GeneralizedMeanPooling(learnable=False), "p", False),
        (LogSumExpPooling(), "r", False), (LogSumExpPooling(learnable=True), "r", True),
    ):  # fmt: skip
        parameter = pool.double().get_parameter(name)
        assert parameter.requires_grad is learns and name in pool.state_dict()
        if learns:
            eps, before = 1e-6, pool(act).sum()
            before.backward()
            with torch.no_grad():
                parameter.add_(eps)
                slope = (pool(act).sum() - before) / eps
            assert parameter.grad is not None and math.isclose(parameter.grad.item(), slope.item(), rel_tol=1e-4)


@pools
def test_what_has_no_mean_is_refused(make: type[nn.Module]) -> None:
    pool, act = make(), torch.rand(3, 2, 4, 5)
    weight = torch.ones(3, 4, 5)
    weight[1] = 0
    with pytest.raises(InputError, match="picture 1 are not"):
        pool(act, weight)
    for wrong in (torch.full((3, 4, 5), -1.0), torch.full((3, 4, 5), math.nan), torch.full((3, 4, 5), math.inf)):
        with pytest.raises(InputError, match="picture 0, 1, 2"):
            pool(act, wrong)
    mixed = torch.ones(3, 4, 5)
    mixed[2, 0, 0] = -0.5
    with pytest.raises(InputError, match="picture 2 are not"):
        pool(act, mixed)
    for shape in ((3, 5, 4), (1, 4, 5), (3, 2, 4, 5), (4, 5)):
        with pytest.raises(InputError, match=r"are \(3, 4, 5\), not"):
            pool(act, torch.ones(shape))
    for empty in (torch.rand(3, 2), torch.rand(3, 2, 0, 5)):
        with pytest.raises(InputError, match="needs maps"):
            pool(empty)


def test_exponents_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="p ≠ 0"):
        GeneralizedMeanPooling(p=0.0)
    with pytest.raises(InputError, match="eps > 0"):
        GeneralizedMeanPooling(eps=0.0)
    with pytest.raises(InputError, match="r ≠ 0"):
        LogSumExpPooling(r=0.0)


@pools
def test_half_precision_stays_half_precision(make: type[nn.Module]) -> None:
    act = torch.rand(2, 3, 4, 5)
    pool = make()
    assert apart(pool(act.bfloat16()).float(), pool(act)) < 0.02
    assert pool(act.bfloat16()).dtype == torch.bfloat16
