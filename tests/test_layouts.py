"""Layouts: whatever axes a layer gave, the right ones are told apart, and nothing is lost or turned on the way."""

import itertools
import math

import nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replicas import places
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.layouts import Layout, channels_first, channels_last, has_space, infer, strided_grids, tokens
from camlucida.errors import LayoutError


def numbered(b: int, c: int, *space: int) -> Tensor:
    """Every entry tells where it belongs."""
    return torch.arange(b * c * math.prod(space), dtype=torch.float64).reshape(b, c, *space)


def as_tokens(act: Tensor, prefix: int) -> Tensor:
    """``b c *space`` as ``b (prefix + places) c``, place by place, row by row; the prefix is NaN."""
    b, c, *space = act.shape
    made = torch.full((b, prefix + math.prod(space), c), torch.nan, dtype=act.dtype)
    for n, at in enumerate(places(space)):
        for i, k in itertools.product(range(b), range(c)):
            made[i, prefix + n, k] = act[(i, k, *at)]
    return made


# --------------------------------------------------------------------------------------------------------- round trips

SPACES = [(5,), (3, 4), (4, 3), (2, 3, 4), (1, 7), (6, 1), (4, 4)]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_channels_first_hands_the_tensor_on(space: tuple[int, ...]) -> None:
    act = numbered(2, 3, *space)
    assert channels_first(act) is act


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_channels_last_puts_the_last_axis_second(space: tuple[int, ...]) -> None:
    act = numbered(2, 3, *space)
    last = torch.empty(2, *space, 3, dtype=torch.float64)
    for at in places(space):
        for i, k in itertools.product(range(2), range(3)):
            last[(i, *at, k)] = act[(i, k, *at)]
    assert torch.equal(channels_last(last), act)


@pytest.mark.parametrize("prefix", range(6))
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_tokens_drop_the_prefix_and_lay_the_rest_out_row_by_row(space: tuple[int, ...], prefix: int) -> None:
    act = numbered(2, 3, *space)
    assert torch.equal(tokens(prefix, space)(as_tokens(act, prefix)), act)


MISFITS = [(16, 1, (4, 4)), (17, 0, (4, 4)), (12, 1, (3, 4)), (3, 4, (1, 1))]


@pytest.mark.parametrize(("count", "prefix", "grid"), MISFITS, ids=str)
def test_tokens_that_do_not_fit_are_an_error_that_shows_how_to_say_it(
    count: int, prefix: int, grid: tuple[int, int]
) -> None:
    with pytest.raises(LayoutError, match=rf"{count} tokens .* prefix of {prefix} .*tokens\(prefix="):
        tokens(prefix, grid)(torch.zeros(2, count, 8))


def test_layout_says_what_it_is_and_compares_by_value() -> None:
    assert str(channels_first) == "channels first" and str(channels_last) == "channels last"
    assert str(tokens(1, (14, 14))) == "tokens(prefix=1, grid=14×14)"
    assert tokens(1, (2, 3)) == Layout("tokens", 1, (2, 3)) != tokens(0, (2, 3))


# --------------------------------------------------------------------------------------------------------------- grids

NETS = [((224, 224), 7, 512), ((224, 224), 56, 64), ((32, 32), 4, 256), ((224, 224), 14, 1024), ((64, 64), 8, 2048)]


@pytest.mark.parametrize(("space", "side", "c"), NETS, ids=str)
def test_square_grids_are_told_apart_from_channels(space: tuple[int, int], side: int, c: int) -> None:
    assert infer((2, c, side, side), space) == channels_first
    assert infer((2, side, side, c), space) == channels_last


@pytest.mark.parametrize(
    ("space", "grid"),
    [((224, 320), (7, 10)), ((320, 224), (10, 7)), ((480, 640), (15, 20)), ((97, 65), (13, 9)), ((224, 224), (1, 1)),
     ((33, 100), (5, 13)), ((224, 1024), (14, 64))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("c", [3, 96, 768])
def test_oblong_grids_are_told_apart_from_channels(space: tuple[int, int], grid: tuple[int, int], c: int) -> None:
    if grid != (1, 1) or c > max(space):
        assert infer((2, c, *grid), space) == channels_first
        assert infer((2, *grid, c), space) == channels_last


@pytest.mark.parametrize("space", [(16, 16), (12, 20)], ids=str)
def test_module_decides_where_both_readings_fit(space: tuple[int, int]) -> None:
    shape = (2, space[0] // 4, space[0] // 4, space[0] // 4)  # channels as many as places a side
    for module in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)):
        assert infer(shape, space, module) == channels_first
    for module in (nn.LayerNorm(4), nn.Linear(4, 4)):
        assert infer(shape, space, module) == channels_last if space[0] == space[1] else True
    assert infer(shape, space, None) == infer(shape, space, nn.ReLU()) == channels_first


def test_shape_outweighs_the_module_where_only_one_reading_fits() -> None:
    assert infer((2, 7, 7, 512), (224, 224), nn.Conv2d(3, 3, 1)) == channels_last
    assert infer((2, 512, 7, 7), (224, 224), nn.LayerNorm(7)) == channels_first


DEEP = [((2, 64, 112), (224,)), ((2, 8, 4, 7, 7), (16, 28, 28)), ((2, 3, 224), (224,))]


@pytest.mark.parametrize(("shape", "space"), DEEP, ids=str)
def test_signals_and_volumes_are_read_channels_first(shape: tuple[int, ...], space: tuple[int, ...]) -> None:
    assert infer(shape, space) == channels_first


def test_signals_and_volumes_are_read_channels_last_where_only_that_fits() -> None:
    assert infer((2, 50, 512), (100,)) == channels_last
    assert infer((2, 4, 7, 7, 96), (16, 28, 28)) == channels_last
    assert infer((2, 50, 64), (100,), nn.LayerNorm(64)) == channels_last


# -------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("prefix", range(6))
@pytest.mark.parametrize(
    ("space", "patch"),
    [((224, 224), 16), ((224, 224), 32), ((224, 224), 14), ((384, 384), 16), ((224, 448), 16), ((256, 128), 16),
     ((32, 32), 4)],
    ids=str,
)  # fmt: skip
def test_grid_seen_before_tells_the_prefix(space: tuple[int, int], patch: int, prefix: int) -> None:
    grid = tuple(s // patch for s in space)
    shape = (2, prefix + math.prod(grid), 48)
    assert infer(shape, space, None, [grid]) == tokens(prefix, grid)
    assert infer(shape, space, nn.LayerNorm(48), [(space[0] // 2, space[1] // 2), grid]) == tokens(prefix, grid)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("side", "patch"), [(224, 16), (384, 16), (224, 32), (256, 8)])
def test_square_grid_and_prefix_are_found_without_any_evidence(side: int, patch: int, prefix: int) -> None:
    places_a_side = side // patch
    grid = (places_a_side, places_a_side)
    assert infer((2, prefix + math.prod(grid), 48), (side, side)) == tokens(prefix, grid)


@pytest.mark.parametrize(("space", "patch"), [((224, 448), 16), ((256, 128), 16), ((96, 160), 8), ((64, 32), 4)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_oblong_grid_and_prefix_are_found_without_any_evidence(space: tuple[int, int], patch: int, prefix: int) -> None:
    grid = tuple(s // patch for s in space)
    assert infer((2, prefix + math.prod(grid), 48), space) == tokens(prefix, grid)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_merged_tokens_are_a_halving_of_the_grid_seen_before(times: int) -> None:
    grid = tuple(-(-n // 2**times) for n in (56, 42))
    assert infer((2, math.prod(grid), 48), (224, 168), None, [(56, 42)]) == tokens(0, grid)


def test_latest_grid_of_the_right_size_is_taken() -> None:
    assert infer((2, 24, 8), (32, 48), None, [(16, 24), (4, 6)]) == tokens(0, (4, 6))
    assert infer((2, 25, 8), (32, 48), None, [(4, 6), (2, 3)]) == tokens(1, (4, 6))


def test_volumes_have_tokens_too() -> None:
    assert infer((2, 8 * 14 * 14, 48), (16, 224, 224), None, [(8, 14, 14)]) == tokens(0, (8, 14, 14))
    assert infer((2, 1 + 8 * 14 * 14, 48), (16, 224, 224), None, [(8, 14, 14)]) == tokens(1, (8, 14, 14))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(h=st.integers(2, 12), w=st.integers(2, 12), patch=st.integers(2, 16), prefix=st.integers(0, 5))
def test_inferred_tokens_give_back_what_was_flattened(h: int, w: int, patch: int, prefix: int) -> None:
    act = torch.arange(2 * h * w, dtype=torch.float64).reshape(1, 2, h, w)
    flat = torch.cat([torch.full((1, prefix, 2), torch.nan, dtype=torch.float64), act.flatten(2).transpose(1, 2)], 1)
    layout = infer(flat.shape, (h * patch, w * patch), None, [(h, w)])
    assert torch.equal(layout(flat), act)


def test_heads_beside_tokens_are_no_grid() -> None:
    shape, space = (1, 2304, 12, 64), (768, 768)  # tokens, heads, channels of each
    assert infer(shape, space, nn.LayerNorm(64)) == channels_first  # nothing speaks against it
    with pytest.raises(LayoutError, match=r"follows from the 48×48 met before: say how to read it"):
        infer(shape, space, nn.LayerNorm(64), cut=[(48, 48)])
    assert infer((1, 256, 96, 96), space, nn.GELU(), cut=[(48, 48)]) == channels_first  # made of tokens again, finer


# ------------------------------------------------------------------------------------------------------- errors, grids


@pytest.mark.parametrize(
    ("shape", "space"),
    [((2, 10), (224, 224)), ((2,), (224, 224)), ((2, 3, 4, 5, 6), (224, 224)), ((2, 64), (100,)),
     ((2, 3, 4, 5), (100,))],
    ids=str,
)  # fmt: skip
def test_axes_that_match_no_input_are_an_error(shape: tuple[int, ...], space: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match="say how to read it"):
        infer(shape, space)


def test_grid_larger_than_the_input_is_an_error() -> None:
    with pytest.raises(LayoutError, match="larger than the input"):
        infer((2, 300, 300, 300), (224, 224))
    with pytest.raises(LayoutError):
        infer((2, 300, 300), (224,))


def test_no_token_at_all_is_an_error() -> None:
    with pytest.raises(LayoutError, match="tokens"):
        infer((2, 0, 8), (224, 224))


def test_strided_grids_go_from_the_input_itself_to_a_single_place() -> None:
    assert strided_grids((8, 12)) == ((8, 12), (4, 6), (2, 3)) and strided_grids((7, 7)) == ((7, 7), (1, 1))


def test_space_is_more_than_one_place() -> None:
    assert has_space((1, 2)) and has_space((3,)) and not has_space((1, 1)) and not has_space((1,))


# ----------------------------------------------------------------------------------------------------- through explain


def test_channels_last_layer_is_read_by_itself_and_as_told() -> None:
    net = nets.channels_last_net()
    x = net.x(2)
    found = cl.explain(net, x, target=1, method="hirescam", layer="features")
    told = cl.explain(net, x, target=1, method="hirescam", layer=("features", channels_last))
    act = net.act(x).movedim(-1, 1)
    expected = torch.einsum("c,bchw->bhw", net.head.weight[1].detach(), act) / 20
    assert torch.allclose(found.map, expected, rtol=1e-12, atol=0) and torch.equal(found.map, told.map)
    assert found.facts.layout == "channels last"


@pytest.mark.parametrize("registers", range(5))
def test_prefix_and_grid_of_a_transformer_are_found_by_themselves(registers: int) -> None:
    net = nets.token_net(registers)
    e = cl.explain(net, net.x(2), target=1, layer=net.layer)
    assert e.facts.layout == f"tokens(prefix={registers + 1}, grid=4×6)" and e.map.shape == (2, 4, 6)


def test_layout_of_ones_own_is_any_function_to_channels_first() -> None:
    net = nets.token_net(2)
    x = net.x(2)

    def own(made: Tensor) -> Tensor:
        return made[:, 3:].reshape(2, 4, 6, 6).permute(0, 3, 1, 2)

    told = cl.explain(net, x, target=1, layer=(net.layer, own))
    assert torch.equal(told.map, cl.explain(net, x, target=1, layer=net.layer).map)


def test_layout_that_does_not_fit_is_an_error() -> None:
    net = nets.token_net(2)
    with pytest.raises(LayoutError, match="27 tokens"):
        cl.explain(net, net.x(1), target=1, layer=(net.layer, tokens(1, (4, 6))))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_signals_pictures_and_volumes_take_the_same_path(dims: int) -> None:
    net = nets.relu_tail(dims, 1)
    e = cl.explain(net, net.x(2), target=1)
    assert e.facts.layout == "channels first" and e.map.dim() == dims + 1
    assert tuple(e.heatmap().shape) == nets.SPACE[dims]
