"""Each method against its slow twin, at every size of number, and what must not change its map."""

import itertools
import math

import nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replicas import REPLICAS, apart, cam_of_weights, slow_gradient, xgradcam
from torch import Tensor

import camlucida as cl
from camlucida.registry import Method, get, list_methods

METHODS = {n: m for n, m in list_methods().items() if n in REPLICAS}  # other families have files of their own
SPACES = {1: (7,), 2: (3, 4), 3: (2, 3, 2)}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=[f"{d}d" for d in SPACES])


def drawn(space: tuple[int, ...], seed: int, signed: bool, b: int = 2, c: int = 3) -> tuple[Tensor, Tensor]:
    """Activation and gradient; the gradient holds exact zeros, as behind a ReLU or a max pool."""
    draw = torch.Generator().manual_seed(seed)
    act, grad = (torch.randn(b, c, *space, generator=draw, dtype=torch.float64) for _ in range(2))
    dead = torch.rand(grad.shape, generator=draw) < 0.2
    return act if signed else act.relu(), grad.masked_fill(dead, 0.0)


def test_every_gradient_and_head_method_has_a_slow_twin_here() -> None:
    rooms = {"camlucida.methods.gradient", "camlucida.methods.head"}
    assert set(REPLICAS) == {n for n, m in list_methods().items() if m.read.__module__ in rooms}


@every_method
@every_space
@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
@pytest.mark.parametrize("seed", range(3))
def test_method_equals_its_slow_twin(method: Method, space: tuple[int, ...], signed: bool, seed: int) -> None:
    act, grad = drawn(space, seed, signed)
    assert apart(method(act, grad), REPLICAS[method.name](act, grad)) < 1e-12


@every_method
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_method_equals_its_slow_twin_on_any_small_numbers(method: Method, data: st.DataObject) -> None:
    space = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    shape = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), *space)
    # Eighths: sums are exact, so that a channel whose sum is zero is zero in both.
    eighths = st.lists(st.integers(-16, 16), min_size=math.prod(shape), max_size=math.prod(shape))
    act, grad = (torch.tensor(data.draw(eighths), dtype=torch.float64).reshape(shape) / 8 for _ in range(2))
    assert apart(method(act, grad), REPLICAS[method.name](act, grad)) < 1e-12


@every_method
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-8, 1e-4, 1.0, 1e4, 1e10])
def test_float32_keeps_the_twins_numbers_for_gradients_of_any_size(method: Method, size: float) -> None:
    act, grad = drawn((3, 4), 5, signed=False)
    act, grad = act.float(), (grad * size).float()
    found = method(act, grad)
    assert found.dtype == torch.float32 and found.isfinite().all() and found.abs().max() > 0
    assert apart(found, REPLICAS[method.name](act, grad)) < 1e-5


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1.0, 1e10])
def test_no_gradient_and_no_channel_sum_makes_a_map_non_finite(method: Method, dtype: torch.dtype, size: float) -> None:
    act, grad = drawn((3, 4), 6, signed=True)
    act = act - act.mean((2, 3), keepdim=True)
    for shift, act_size in itertools.product([-3.0, -0.5, 0.0, 0.5], [1e-8, 1.0, 1e8]):
        moved = act + shift  # channel sums of 12 · shift: negative, rounding noise, positive
        found = method((moved * act_size).to(dtype), (grad * size).to(dtype))
        assert found.isfinite().all(), (shift, act_size)


@every_method
def test_a_channel_that_sums_to_exactly_zero_makes_no_map_non_finite(method: Method) -> None:
    act = torch.tensor([[[1.0, -1.0, 0.0], [2.0, 1.0, 1.0]]])
    grad = torch.tensor([[[3.0, 1.0, 2.0], [1.0, 1.0, -1.0]]])
    assert method(act, grad).isfinite().all()
    assert apart(method(act, grad), REPLICAS[method.name](act, grad)) < 1e-6


@pytest.mark.parametrize("total", [-3.999999, -4.0, -4.000001, -1e-12, 0.0])
def test_gradcampp_has_no_pole_where_the_paper_fraction_has_one(total: float) -> None:
    act = torch.full((1, 1, 4), total / 4, dtype=torch.float64)
    grad = torch.full((1, 1, 4), 0.5, dtype=torch.float64)  # 2 + G ΣA crosses zero at ΣA = −4
    assert apart(get("gradcampp")(act, grad), act[:, 0]) < 1e-12  # w = 4 · 0.5 / 2 = 1


def test_gradcampp_never_weighs_a_channel_negatively() -> None:
    act, grad = drawn((4, 4), 8, signed=False)
    assert (get("gradcampp")(act, grad) >= 0).all() and (get("gradcampp")(act, -grad.abs()) == 0).all()


def test_xgradcam_gives_no_weight_to_a_channel_whose_sum_is_rounding_noise() -> None:
    act = torch.tensor([[[0.1, 0.2, -0.3], [1.0, 2.0, 3.0]]], dtype=torch.float64)
    act[0, 0, 2] -= act[0, 0].sum() - 1e-17
    grad = torch.tensor([[[5.0, -7.0, 11.0], [1.0, 1.0, 1.0]]], dtype=torch.float64)
    assert apart(get("xgradcam")(act, grad), act[:, 1]) < 1e-12


def test_xgradcam_keeps_the_sign_of_a_negative_channel_sum() -> None:
    act = torch.tensor([[[-1.0, -3.0]]], dtype=torch.float64)
    grad = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)  # w = −1 / −4
    assert get("xgradcam")(act, grad).tolist() == [[-0.25, -0.75]] == xgradcam(act, grad).tolist()


# -------------------------------------------------------------------------------------------------- what cannot matter


@every_method
@every_space
def test_order_of_channels_changes_nothing(method: Method, space: tuple[int, ...]) -> None:
    act, grad = drawn(space, 9, signed=True, c=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert apart(method(act[:, order], grad[:, order]), method(act, grad)) < 1e-12


@every_method
@every_space
def test_places_that_move_together_move_the_map_and_nothing_else(method: Method, space: tuple[int, ...]) -> None:
    act, grad = drawn(space, 10, signed=True)
    axes = tuple(range(2, act.dim()))
    moved = method(act.roll((1,) * len(axes), axes).flip(-1), grad.roll((1,) * len(axes), axes).flip(-1))
    inner = tuple(range(1, act.dim() - 1))
    assert apart(moved, method(act, grad).roll((1,) * len(inner), inner).flip(-1)) < 1e-12


@every_method
@every_space
def test_dead_channels_add_nothing(method: Method, space: tuple[int, ...]) -> None:
    act, grad = drawn(space, 11, signed=True)
    more = [torch.cat([t, extra], 1) for t, extra in ((act, torch.zeros_like(act)), (grad, torch.randn_like(grad)))]
    assert apart(method(*more), method(act, grad)) < 1e-12


@every_method
@every_space
def test_each_picture_is_read_alone(method: Method, space: tuple[int, ...]) -> None:
    act, grad = drawn(space, 12, signed=True, b=4)
    single = torch.cat([method(act[i : i + 1], grad[i : i + 1]) for i in range(4)])
    assert apart(method(act, grad), single) < 1e-12


@every_method
def test_inputs_are_neither_changed_nor_required_to_be_contiguous(method: Method) -> None:
    act, grad = drawn((3, 4), 13, signed=True)
    before = act.clone(), grad.clone()
    strided = [t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (act, grad)]
    assert apart(method(*strided), method(act, grad)) < 1e-12
    assert torch.equal(act, before[0]) and torch.equal(grad, before[1])
    assert apart(method(act, grad.mean((2, 3), keepdim=True).expand_as(grad)),
                 method(act, grad.mean((2, 3), keepdim=True).repeat(1, 1, 3, 4))) < 1e-12  # fmt: skip


@every_method
@every_space
def test_closed_form_at_a_global_average_pool_equals_the_method(method: Method, space: tuple[int, ...]) -> None:
    if method.at_gap is None:
        pytest.skip(f"{method.name} claims no closed form")
    act, grad = drawn(space, 14, signed=True)
    g = torch.stack([grad.flatten(2)[..., 0], grad.flatten(2)[..., -1] * 1e-9])  # two targets
    weights = method.at_gap(g, act)
    for t in range(2):
        everywhere = g[t].reshape(2, 3, *(1,) * len(space)).expand_as(act)
        assert apart(torch.einsum("bc,bc...->b...", weights[t], act), method(act, everywhere)) < 1e-12


@every_method
@pytest.mark.parametrize("by", [1e-3, 0.5, 7.0])
def test_channels_scaled_against_their_gradients_leave_the_map(method: Method, by: float) -> None:
    """A · t and G / t per channel: the same function of the input, so the same map (P20 at the formula)."""
    act, grad = drawn((3, 4), 15, signed=True)
    t = torch.tensor([by, 1.0, 1 / by], dtype=torch.float64).reshape(1, 3, 1, 1)
    assert apart(method(act * t, grad / t), method(act, grad)) < 1e-12


# ----------------------------------------------------------------------------------------- down to the last derivative


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("name", ["smooth_tail", "gap_linear", "gem_linear"])
def test_explain_equals_the_twin_of_a_gradient_measured_by_finite_differences(name: str, dims: int) -> None:
    net = nets.TAILS[name](dims, seed=3)
    x = net.x(1)
    grad = slow_gradient(net, net.features, x, lambda y: y[:, 2])
    found = cl.sweep(net, x, targets=[2], methods=[m for m in METHODS if m != "cam"], layers=[net.layer])
    for e in found:
        assert apart(e.map, REPLICAS[e.method](net.act(x), grad)) < 1e-6, e.method


def test_explain_equals_the_twin_at_an_attention_layer_by_finite_differences() -> None:
    net = nets.token_net(registers=1)
    x = net.x(1)
    kept: list[Tensor] = []
    with net.blocks[1].norm1.register_forward_hook(lambda _m, _a, made: kept.append(made.detach())):
        net(x)
    grad = slow_gradient(net, net.blocks[1].norm1, x, lambda y: y[:, 2])
    act, grad = (t[:, net.prefix :].transpose(1, 2).reshape(1, 6, *net.grid) for t in (kept[0], grad))
    for e in cl.sweep(net, x, targets=[2], methods=[m for m in METHODS if m != "cam"], layers=[net.layer]):
        assert apart(e.map, REPLICAS[e.method](act, grad)) < 1e-6, e.method


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("make", [nets.gap_linear, nets.nin], ids=["gap_linear", "nin"])
def test_cam_equals_the_twin_that_reads_the_heads_own_weights(make, dims: int) -> None:
    net = make(dims, seed=4)
    x = net.x(2)
    weight = net.head.weight.flatten(1)
    e = cl.explain(net, x, target=cl.classes([1, 3]), method="cam", layer=net.layer)
    assert apart(e.map, cam_of_weights(net.act(x), weight, [1, 3])) < 1e-12
