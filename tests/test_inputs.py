"""Several inputs, lists, videos: which one is mapped, and that the others go with it."""

from collections.abc import Callable
from typing import Any

import nets
import pytest
import torch
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.inputs import Inputs
from camlucida.errors import InputError, LayerError

PICTURE, OTHER = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)


# ---------------------------------------------------------------------------------------------------- which is mapped


def test_the_largest_floating_tensor_with_space_is_the_picture_wherever_it_lies() -> None:
    ids, mask, meta = torch.zeros(2, 500, dtype=torch.long), torch.zeros(2, 1, 8, 8), torch.zeros(2, 900)
    for given in (
        Inputs((ids, PICTURE, meta)),
        Inputs((mask,), {"meta": meta, "pixels": PICTURE}),
        Inputs(({"deep": [ids, (mask, PICTURE)]}, meta)),
    ):
        assert given.x is PICTURE
    text = torch.zeros(2, 77, 700)
    assert Inputs((text, PICTURE)).x is text  # larger; only the model's own number of axes tells
    assert Inputs((text, PICTURE)).settled(axes=4).x is PICTURE


@pytest.mark.parametrize("mapped", [1, "flow", (2, "deep", 0)])
def test_a_picture_is_named_by_position_keyword_or_the_way_to_it(mapped: Any) -> None:
    meant = torch.ones(2, 2, 8, 8)
    places = {1: Inputs((PICTURE, meant)), "flow": Inputs((PICTURE,), {"flow": meant})}
    given = places.get(mapped, Inputs((PICTURE, OTHER, {"deep": (meant, 3)})))
    assert Inputs(given.args, given.kwargs, mapped=mapped).x is meant


def test_two_of_one_size_are_told_and_not_chosen() -> None:
    for given in (Inputs((PICTURE, OTHER)), Inputs((PICTURE, PICTURE)), Inputs((), {"a": PICTURE, "b": OTHER})):
        with pytest.raises(InputError, match=r"could both be the picture.*float32 2×3×8×8.*mapped="):
            _ = given.x
    with pytest.raises(InputError, match=r"argument 0\['a'\] and argument 0\['b'\].*mapped=\(0, 'a'\)"):
        _ = Inputs(({"a": PICTURE, "b": OTHER},)).x


def test_what_is_no_picture_is_listed() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(InputError, match=r"no floating-point tensor.*argument 0 is int64 2×5, 'scale' is float"):
        _ = Inputs((ids,), {"scale": 2.0}).x
    with pytest.raises(InputError, match="there are none"):
        _ = Inputs().x
    for mapped in (3, "pixels", (0, 1)):
        with pytest.raises(InputError, match=r"is not among the inputs: argument 0 is float32"):
            _ = Inputs((PICTURE,), mapped=mapped).x
    for mapped, given in ((0, ids), (0, "cat"), (0, []), (0, [PICTURE, ids])):
        with pytest.raises(InputError, match="no floating-point tensor, so no map can lie on it"):
            _ = Inputs((given,), mapped=mapped).x
    with pytest.raises(InputError, match=r"different sizes \(3×8×8, 3×9×8\).*explain each by itself"):
        _ = Inputs(([torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)],)).x
    for takes, given in (("list", PICTURE), ("batch", [PICTURE[0]]), ("frames first", PICTURE)):
        with pytest.raises(InputError, match="takes="):
            _ = Inputs((given,), takes=takes).x


def test_the_choice_stands_in_the_notes() -> None:
    both = cl.explain(Streams(), (picture(1), picture(2, channels=1)), target=1)
    assert "of 2 inputs with space the map lies on the largest, argument 0" in both.summary()["notes"]
    named = cl.explain(Streams(), Inputs((picture(1), picture(2, channels=1)), mapped=0), target=1)
    assert "largest" not in named.summary().get("notes", "") and torch.equal(named.map, both.map)


# ---------------------------------------------------------------------------------------------------- the ways between


def test_rows_and_versions_of_pictures_take_along_what_belongs_to_them() -> None:
    x, ids, few = torch.rand(3, 2, 4, 4), torch.arange(6).reshape(3, 2), torch.rand(5)
    given = Inputs(({"deep": [x, ids]},), {"few": few, "flag": True})
    one = given.row(1)
    assert torch.equal(one.x, x[1:2]) and torch.equal(one.args[0]["deep"][1], ids[1:2])
    assert one.kwargs["few"] is few and one.kwargs["flag"] is True
    many = one.showing(torch.zeros(4, 2, 4, 4))
    assert many.x.shape == (4, 2, 4, 4) and torch.equal(many.args[0]["deep"][1], ids[1:2].expand(4, 2))
    small = one.showing(torch.zeros(4, 1, 1, 1))  # smaller than what is beside it, and still the picture
    assert small.x.shape == (4, 1, 1, 1)


def test_only_the_picture_named_is_replaced_where_one_tensor_was_given_twice() -> None:
    given = Inputs((PICTURE, PICTURE), mapped=1).put(torch.ones(2, 3, 8, 8))
    assert given.args[0] is PICTURE and given.args[1].mean() == 1


def test_lists_and_videos_are_one_tensor_in_between() -> None:
    x = torch.rand(3, 2, 4, 5)
    listed = Inputs((list(x), ["a", "b", "c"]))
    one = listed.row(2).args
    assert torch.equal(listed.x, x) and torch.equal(one[0][0], x[2]) and len(one[0]) == 1 and one[1] == ["c"]
    shown = listed.row(2).showing(x)
    assert isinstance(shown.args[0], list) and torch.equal(torch.stack(shown.args[0]), x) and shown.args[1] == ["c"] * 3
    video = torch.rand(2, 6, 3, 4, 5)
    told = Inputs((video,)).settled(axes=5, channels=3)
    assert told.takes == "frames first" and torch.equal(told.x, video.movedim(2, 1))
    assert torch.equal(told.put(told.x * 2).args[0], video * 2)
    assert Inputs((video,)).settled(axes=5, channels=6).takes == "batch"


def test_channels_that_could_be_either_axis_are_told() -> None:
    video = torch.rand(1, 3, 3, 4, 4)
    volume = torch.zeros(1, 2, 2, 8, 8)  # as deep as it has channels, and no video
    assert Inputs((volume,)).settled(channels=2).takes == "batch"
    with pytest.raises(InputError, match=r"either axis could be the 3 channels.*frames first"):
        Inputs((video,)).settled(axes=5, channels=3)
    assert Inputs((video,), takes="frames first").settled(axes=5, channels=3).takes == "frames first"
    assert torch.equal(Inputs((video,), takes="batch").settled(5, 3).x, video)


# ------------------------------------------------------------------------------------------------- through the house


def picture(seed: int, b: int = 2, channels: int = 2, space: tuple[int, ...] = (8, 9)) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(b, channels, *space, generator=draw, dtype=torch.float64)


class Streams(nn.Module):
    """Two encoders of their own, the second one's channels last, and a head on both."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.first, self.second = nets.smooth_tail(2, 1), nets.smooth_tail(2, 2)
        self.second.features[0] = nn.Conv2d(channels, 3, 3, padding=1).double()
        self.eval()

    def forward(self, picture: Tensor, flow: Tensor) -> Tensor:
        return self.first(picture) + self.second(flow).tanh()


@pytest.mark.parametrize(("mapped", "own", "other"), [(0, "first", "second"), (1, "second", "first")])
def test_of_two_streams_the_layer_is_one_that_sees_the_picture(mapped: int, own: str, other: str) -> None:
    net, given = Streams(), (picture(1), picture(2, channels=1))
    e = cl.explain(net, Inputs(given, mapped=mapped), target=1)
    assert e.layer.startswith(own)
    stream = getattr(net, own)
    alone = cl.explain(stream, given[mapped], target=lambda y: (y if own == "first" else y.tanh())[:, 1],
                       layer=e.layer.removeprefix(f"{own}."))  # fmt: skip
    assert apart(e.map, alone.map) < 1e-12
    with pytest.raises(LayerError, match=rf"'{other}.features' gives the same whatever argument {mapped} shows"):
        cl.explain(net, Inputs(given, mapped=mapped), target=1, layer=f"{other}.features")


def test_what_is_remembered_of_one_picture_is_not_said_of_another() -> None:
    net, given = Streams(2), (picture(1), picture(2))
    layers = [cl.explain(net, Inputs(given, mapped=k), target=1).layer for k in (0, 1, 0)]
    assert [name.partition(".")[0] for name in layers] == ["first", "second", "first"]


def test_a_siamese_net_is_refused_where_its_layer_runs_twice_and_asked_at_the_picture() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nets.smooth_tail()

        def forward(self, one: Tensor, two: Tensor) -> Tensor:
            return (self.net(one) * self.net(two)).tanh()

    net, one, two = Twins(), picture(1), picture(2)
    with pytest.raises(LayerError):
        cl.explain(net, Inputs((one, two), mapped=0), target=1)
    with pytest.raises(InputError, match="could both be the picture"):
        cl.explain(net, (one, two), target=1)
    for method in ("gradient", "occlusion"):
        e = cl.explain(net, Inputs((one, two), mapped=0), target=1, method=method)
        turned = cl.explain(net, Inputs((two, one), mapped=1), target=1, method=method)
        assert apart(e.map, turned.map) < 1e-10 and e.status == "ok"
        other = cl.explain(net, Inputs((one, two), mapped=1), target=1, method=method)
        assert apart(e.map, other.map) > 1e-3


class Detector(nn.Module):
    """Takes a list of pictures without their batch axis, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.smooth_tail()

    def forward(self, pictures: list[Tensor]) -> dict[str, Tensor]:
        assert isinstance(pictures, list) and all(p.dim() == 3 for p in pictures)
        return {"logits": self.net(torch.stack([2 * p for p in pictures]))}


class Frames(nn.Module):
    """Takes a video with its frames before its channels, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.smooth_tail(3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.net(2 * pixel_values.permute(0, 2, 1, 3, 4))


class Doubled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(2 * x)


METHODS = ["gradcam", "scorecam", "ablationcam", "gradient", "integratedgradients", "smoothgrad", "occlusion", "rise"]


def alike(taken: nn.Module, plain: nets.Net, given: Callable[[Tensor], Any], x: Tensor, method: str) -> None:
    e = cl.explain(taken, given(x), target=1, method=method)
    twin = cl.explain(Doubled(plain), x, target=1, method=method)
    assert e.map.shape == twin.map.shape and apart(e.map, twin.map) < 1e-10 and apart(e.scores, twin.scores) < 1e-12
    alone = cl.explain(taken, given(x[1:]), target=1, method=method)
    assert apart(alone.map[0], e.map[1]) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_a_list_of_pictures_has_the_maps_of_the_batch(method: str) -> None:
    alike(Detector(), nets.smooth_tail(), lambda x: (list(x),), picture(1), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_video_with_frames_first_has_the_maps_of_one_with_channels_first(method: str) -> None:
    x = picture(1, space=nets.SPACE[3])
    alike(Frames(), nets.smooth_tail(3), lambda x: {"pixel_values": x.movedim(1, 2)}, x, method)
    e = cl.explain(Frames(), x.movedim(1, 2), target=1)
    assert e.pictures.space == nets.SPACE[3] and e.heatmap().shape == nets.SPACE[3]
    assert "frames before channels" in e.summary()["notes"]


class Beside(nn.Module):
    """A picture scaled by a number of its own, and a row of whole numbers that says which class is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.smooth_tail()

    def forward(self, ids: Tensor, extra: dict[str, Any]) -> Tensor:
        return self.net(extra["pixels"] * extra["beside"][0][:, :, None, None]).gather(1, ids)


@pytest.mark.parametrize("method", METHODS)
def test_what_comes_beside_stays_with_its_picture_in_every_method(method: str) -> None:
    ids, scale, x = torch.tensor([[3, 0], [1, 2]]), torch.tensor([[0.5], [2.0]]).double(), picture(1)
    net = Beside()
    e = cl.explain(net, (ids, {"pixels": x, "beside": [scale, "nothing"]}), target=0, method=method)
    for i, k in enumerate([3, 1]):
        own = (ids[i : i + 1], {"pixels": x[i : i + 1], "beside": [scale[i : i + 1], "nothing"]})
        assert apart(cl.explain(net, own, target=0, method=method).map[0], e.map[i]) < 1e-10
        if method == "gradcam":
            assert apart(cl.explain(net.net, x[i : i + 1] * scale[i], target=k).map[0], e.map[i]) < 1e-10
