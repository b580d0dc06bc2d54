"""The controls: what they show, that they know nothing of the model, and that they are the same whenever asked."""

import math

import nets
import pytest
import torch
from fingerprint import untouched
from replicas import apart, numbers, places
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import MethodError
from camlucida.registry import get

CONTROLS = ["random", "centre", "uniform", "edges"]
SPACES = [(1,), (7,), (3, 4), (1, 5), (2, 3, 2)]
every_control = pytest.mark.parametrize("name", CONTROLS)
every_space = pytest.mark.parametrize("space", SPACES, ids=lambda s: "×".join(map(str, s)))


def picture(space: tuple[int, ...], c: int = 3, b: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(b, c, *space, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mapped(net: nets.Net, x: Tensor, name: str, **how: object) -> Tensor:
    return cl.explain(net, x, target=1, method=name, layer=net.layer, **how).map


# ---------------------------------------------------------------------------------------------------------- slow twins


def slow_centre(act: Tensor, spread: float = 0.25) -> Tensor:
    b, _, *space = act.shape
    made = torch.zeros(b, *space, dtype=torch.float64)
    for i in range(b):
        for p in places(space):
            far = sum(((at - (side - 1) / 2) / (spread * side)) ** 2 for at, side in zip(p, space, strict=True))
            made[(i, *p)] = math.exp(-far / 2)
    return made


def slow_edges(act: Tensor) -> Tensor:
    A, (b, c, *space) = numbers(act), act.shape
    made = torch.zeros(b, *space, dtype=torch.float64)
    for i in range(b):

        def bright(p: list[int], i: int = i) -> float:
            return sum(A[(i, k, *p)] for k in range(c)) / c

        for p in places(space):
            total = 0.0
            for d, side in enumerate(space):
                low, high = list(p), list(p)
                low[d], high[d] = max(p[d] - 1, 0), min(p[d] + 1, side - 1)
                if side > 1:
                    total += ((bright(high) - bright(low)) / (high[d] - low[d])) ** 2
            made[(i, *p)] = math.sqrt(total)
    return made


@every_space
def test_centre_and_edges_equal_their_slow_twins(space: tuple[int, ...]) -> None:
    x = picture(space)
    assert apart(get("centre")(x), slow_centre(x)) < 1e-12
    assert apart(get("centre").having(spread=0.1)(x), slow_centre(x, 0.1)) < 1e-12
    assert apart(get("edges")(x), slow_edges(x)) < 1e-12


@every_space
def test_uniform_is_one_everywhere(space: tuple[int, ...]) -> None:
    assert torch.equal(get("uniform")(picture(space)), torch.ones(2, *space, dtype=torch.float64))


def test_centre_is_highest_in_the_middle_and_the_same_seen_from_every_side() -> None:
    made = get("centre")(picture((5, 7, 3)))[0]
    assert made.argmax() == 5 * 7 * 3 // 2 and float(made[2, 3, 1]) == 1
    for axis in range(3):
        assert torch.equal(made, made.flip(axis))


def test_edges_are_where_the_brightness_steps_and_not_where_colours_of_one_brightness_do() -> None:
    x = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    x[0, :, :, 3:] = 1.0
    assert get("edges")(x)[0].sum(0).nonzero().flatten().tolist() == [2, 3]
    x[0, 1] = -x[0, 0]
    assert (get("edges")(x) == 0).all()


# -------------------------------------------------------------------------------------------------------------- random


def test_random_is_the_pictures_own_alone_in_a_batch_in_any_order_and_twice() -> None:
    net = nets.smooth_tail()
    x = net.x(4)
    whole = mapped(net, x, "random")
    assert torch.equal(whole, mapped(net, x, "random"))
    assert torch.equal(whole.flip(0), mapped(net, x.flip(0), "random"))
    for i in range(4):
        assert torch.equal(whole[i], mapped(net, x[i : i + 1], "random")[0])


def test_random_differs_between_pictures_seeds_and_nothing_else() -> None:
    net, other = nets.smooth_tail(), nets.smooth_tail(seed=7)
    x = net.x(3)
    maps = [*mapped(net, x, "random"), *mapped(net, x, "random:seed=1"), *mapped(net, x, "random:seed=-1")]
    for i, one in enumerate(maps):
        for two in maps[:i]:
            assert abs(float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])) < 0.5
    assert torch.equal(mapped(other, x, "random"), mapped(net, x, "random"))  # it knows nothing of the weights
    found = cl.sweep(net, x, targets=[0, cl.top1, lambda y: y[:, 2]], methods=["random"], layers=[net.layer])
    assert all(torch.equal(e.map, found[0].map) for e in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_is_the_same_in_any_precision(dtype: torch.dtype) -> None:
    net = nets.gap_linear()
    exact = mapped(net, net.x(3), "random")
    assert apart(mapped(net.to(dtype), net.x(3), "random"), exact) < 1e-6


def test_random_changes_with_one_number_of_the_picture() -> None:
    net = nets.gap_linear()
    x = net.x(1)
    before = mapped(net, x, "random")
    x[0, 1, 3, 4] += 0.5
    assert not torch.equal(mapped(net, x, "random"), before)


def test_random_is_even_between_zero_and_one() -> None:
    net = nets.seeded(nets.Net(nn.Conv2d(2, 3, 1), nets.gap_linear().tail, (2, 100, 100)), 0)
    net.tail[2] = nn.Linear(3, 5).double()
    drawn = mapped(net, net.x(1), "random").flatten()
    assert drawn.min() >= 0 and drawn.max() < 1
    share = torch.histc(drawn, 10, 0, 1) / len(drawn)
    assert (share - 0.1).abs().max() < 0.012  # four standard deviations
    line = drawn.reshape(100, 100)
    assert abs(float(torch.corrcoef(torch.stack([line[:-1].flatten(), line[1:].flatten()]))[0, 1])) < 0.05


def test_no_generator_of_the_users_is_touched() -> None:
    net = nets.gap_linear()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    mapped(net, net.x(1), "random")
    assert torch.equal(torch.rand(3), expected)


# ------------------------------------------------------------------------------------------------------ through explain

LAYOUTS = {
    "channels first": (lambda: nets.smooth_tail(2), (8, 9)), "1-D": (lambda: nets.gap_linear(1), (11,)),
    "3-D": (lambda: nets.gap_linear(3), (5, 6, 7)), "channels last": (nets.channels_last_net, (4, 5)),
    "tokens": (lambda: nets.token_net(2), (4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_controls_have_the_layers_grid_on_every_layout_and_leave_no_trace(layout: str) -> None:
    make, grid = LAYOUTS[layout]
    net = make()
    with untouched(net):
        found = cl.sweep(net, net.x(2), targets=[1, 2], methods=CONTROLS, layers=[net.layer])
    for e in found:
        assert tuple(e.map.shape) == (2, *grid) and e.map.isfinite().all() and e.facts.class_agnostic
        assert e.status == ("constant" if e.method == "uniform" else "ok")


def test_an_exception_from_inside_the_model_leaves_no_trace() -> None:
    net = nets.smooth_tail()

    def fail(_y: Tensor) -> Tensor:
        raise RuntimeError("inside")

    with untouched(net), pytest.raises(RuntimeError, match="inside"):
        cl.sweep(net, net.x(1), targets=[fail], methods=CONTROLS, layers=[net.layer])


def test_edges_are_those_of_the_picture_where_no_layer_is_named() -> None:
    net = nets.gap_linear()
    e = cl.explain(net, net.x(2), target=1, method="edges")
    assert e.layer == "input" and apart(e.map, slow_edges(net.x(2))) < 1e-12


@every_control
def test_controls_know_nothing_of_the_weights(name: str) -> None:
    one, two = nets.gap_linear(seed=0), nets.gap_linear(seed=1)
    layer = "input" if name == "edges" else one.layer
    maps = [cl.explain(net, one.x(2), target=1, method=name, layer=layer).map for net in (one, two)]
    assert torch.equal(*maps) and "weight" in get(name).insensitive


@pytest.mark.parametrize("name", ["centre", "uniform", "edges"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_controls_keep_the_precision(name: str, dtype: torch.dtype) -> None:
    assert get(name)(picture((3, 4)).to(dtype)).dtype == dtype


def test_a_constant_and_a_nan_picture() -> None:
    flat = torch.full((1, 3, 4, 5), 0.2)
    assert (get("edges")(flat) == 0).all()
    flat[0, 0, 0, 0] = torch.nan
    assert not get("edges")(flat).isfinite().all() and get("centre")(flat).isfinite().all()


@pytest.mark.parametrize("spread", [0.0, -0.1, math.nan])
def test_a_bell_without_width_is_an_error(spread: float) -> None:
    with pytest.raises(MethodError, match="above 0"):
        get("centre").having(spread=spread)(picture((3, 4)))
