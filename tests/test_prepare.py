"""What users hold: lists, arrays of bands, and everything that can be handed over wrongly."""

from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from PIL import Image
from replicas import apart
from torch import nn

import camlucida as cl
from camlucida.combine import augmented, over_layers, smooth
from camlucida.errors import InputError, PictureError
from camlucida.frame import IMAGENET


def net_of(channels: int, side: int = 12) -> nets.Net:
    """A tiny net for pictures of so many channels, in single precision."""
    features = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU())
    return nets.seeded(nets.Net(features, nets.gap_linear().tail, (channels, side, side)), 0).float()


def look(channels: int, **how: Any) -> cl.Preprocess:
    return cl.Preprocess((12, 12), mean=(0.4,) * channels, std=(0.3,) * channels, **how)


def bands(channels: int, kind: Any = np.uint16, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    drawn = np.random.default_rng(channels).integers(0, np.iinfo(kind).max + 1, (*size, channels))
    return drawn.astype(kind)


# -------------------------------------------------------------------------------------------------------------- lists


def test_a_list_of_tensors_is_the_batch_of_them() -> None:
    net = nets.smooth_tail()
    x = net.x(3)
    assert torch.equal(cl.explain(net, list(x), target=1).map, cl.explain(net, x, target=1).map)


def test_a_list_that_is_no_batch_is_told() -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    for wrong, told in (
        ([], "list is empty"),
        ([x[0], "photo.jpg"], "of tensors or of pictures, not of both: this one holds a str"),
        ([x[0], np.zeros((8, 8, 3), np.uint8)], "holds a ndarray"),
        ([x, x], "4 axes, as a batch has.*torch.cat"),
        ([x[0], x[1, :, :5]], r"different sizes \(2×8×9, 2×5×9\).*explain each by itself"),
        ([(x[0] * 9).byte()] * 2, "torch.uint8 is no input that a gradient"),
    ):
        with pytest.raises(InputError, match=told):
            cl.explain(net, wrong)


def test_files_of_different_sizes_come_to_one_size_and_keep_their_own_frames(tmp_path: Path) -> None:
    for name, size in (("a.png", (30, 20)), ("b.png", (17, 40))):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / name)
    e = cl.explain(net_of(3), [tmp_path / "a.png", tmp_path / "b.png"], preprocess=look(3), target=1)
    assert [e.heatmap(i).shape for i in (0, 1)] == [(20, 30), (40, 17)] and e.pictures.names == ("a.png", "b.png")


# ------------------------------------------------------------------------------------------------------ wrong by itself


def test_what_is_no_batch_is_told() -> None:
    net = nets.smooth_tail()
    x = net.x(1)
    for wrong, told in (
        (x[0], r"with 4 axes; got \(2, 8, 9\): add the batch axis with x\[None\]"),
        (x[0, 0], r"got \(8, 9\): add the batch axis"),
        (x[:0], r"at least one of each; got \(0, 2, 8, 9\)"),
        (x[..., :0], r"at least one of each; got \(1, 2, 8, 0\)"),
        ((x * 9).int(), "torch.int32 is no input"),
        ({"ids": torch.zeros(1, 5, dtype=torch.long)}, "no floating-point tensor among the inputs.*'ids' is int64 1×5"),
        ({}, "there are none"),
        (("cat", 3), "argument 0 is str, argument 1 is int"),
    ):
        with pytest.raises(InputError, match=told):
            cl.explain(net, wrong)


def test_what_is_no_picture_is_told(tmp_path: Path) -> None:
    net = net_of(3)
    (tmp_path / "words.txt").write_text("no picture")
    for wrong, told in (
        ("nowhere.jpg", "nowhere.jpg: no such file"),
        (tmp_path, "folder"),
        (tmp_path / "words.txt", "not a picture"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"several pictures are a list: list\(array\)"),
        (np.zeros((8, 8, 6), np.uint8), "for bands, preprocess= takes as many means"),
        (np.zeros((3, 8, 8), np.uint8), "channels come last"),
    ):
        with pytest.raises(PictureError, match=told):
            cl.explain(net, wrong, preprocess=look(3))


def test_nan_in_a_tensor_is_a_status_and_not_an_error() -> None:
    net = nets.smooth_tail()
    x = net.x(2)
    x[1, 0, 3, 3] = torch.nan
    assert cl.explain(net, x, target=1).statuses == ("ok", "non-finite")


# -------------------------------------------------------------------------------------------------------------- bands


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
def test_a_tensor_of_any_number_of_channels_is_explained_and_shown(channels: int) -> None:
    x = torch.randn(2, channels, 12, 12)
    e = cl.explain(net_of(channels), x, target=1)
    told = {1: "", 2: "shown: channel 0 of 2", 3: ""}.get(channels, f"shown: channels 0, 1, 2 of {channels}")
    assert e.map.shape == (2, 12, 12) and e.overlay(1).size == (12, 12) and e.summary().get("notes", "") == told


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("channels", [2, 4, 6, 13])
def test_an_array_of_bands_is_prepared_as_a_picture_of_each(channels: int, fit: Any) -> None:
    values = bands(channels)
    how = cl.Preprocess((12, 12), tuple(0.1 * k for k in range(channels)), (0.5,) * channels, fit=fit)
    x, frame = how.bands(values)
    for k in range(channels):  # each band as a grey picture, which has 8 bits
        grey = cl.Preprocess((12, 12), how.mean[k : k + 1], how.std[:1], fit=fit)
        plane, same = grey(Image.fromarray((values[..., k] / 257).round().astype(np.uint8)))
        assert (x[k] - plane[0]).abs().max() < 1.5 / 255 / 0.5 and same == frame
    e = cl.explain(net_of(channels), values, preprocess=how, target=1)
    direct = cl.explain(net_of(channels), x[None], target=1)
    assert torch.equal(e.map, direct.map) and e.heatmap().shape == (20, 30) and e.overlay().size == (30, 20)
    assert f"of {channels}, from" in e.summary()["notes"]


def test_numbers_of_bands_keep_their_meaning() -> None:
    how = cl.Preprocess((20, 30), (0.0,) * 6, (1.0,) * 6, crop=1.0)
    deep = bands(6)
    assert apart(how.bands(deep)[0], torch.from_numpy(deep / 65535).movedim(2, 0)) < 1e-6
    flat = bands(6, np.uint8)
    assert apart(how.bands(flat)[0], torch.from_numpy(flat / 255).movedim(2, 0)) < 1e-6
    own = np.random.default_rng(0).normal(3000, 500, (20, 30, 6))  # reflectances in units of their own
    assert apart(how.bands(own)[0], torch.from_numpy(own).movedim(2, 0)) < 1e-3
    for wrong, told in ((deep.astype(np.int32), "int32 are ambiguous"), (deep[:0], "at least one of each")):
        with pytest.raises(PictureError, match=told):
            how.bands(wrong)
    with pytest.raises(PictureError, match="NaN"):
        cl.explain(net_of(6), np.where(own > 3100, np.nan, own), preprocess=look(6), target=1)


def test_what_is_shown_of_bands_are_the_first_three_on_one_scale() -> None:
    values = np.zeros((4, 5, 6), np.uint16)
    values[..., 0], values[..., 1], values[0, 0, 2], values[..., 5] = 1000, 3000, 5000, 65535
    shown = cl.explain(net_of(6), values, preprocess=look(6), target=1).pictures.image(0)
    assert shown.size == (5, 4) and shown.getpixel((1, 1)) == (51, 153, 0) and shown.getpixel((0, 0)) == (51, 153, 255)


def test_four_channels_are_bands_where_there_are_four_means_and_else_transparency() -> None:
    values = bands(4, np.uint8)
    assert "bands 0, 1, 2 of 4" in cl.explain(net_of(4), values, preprocess=look(4), target=1).summary()["notes"]
    assert cl.explain(net_of(3), values, preprocess=look(3), target=1).summary()["notes"] == "alpha laid over white"


def test_bands_that_do_not_fit_are_told() -> None:
    net = net_of(4)
    with pytest.raises(InputError, match=r"4 channels, and the array's shape is \(20, 30, 6\), not \(height, width, 4"):
        cl.explain(net, bands(6), preprocess=look(4))
    with pytest.raises(InputError, match=r"bands come last, np.moveaxis\(array, 0, -1\)"):
        cl.explain(net, np.moveaxis(bands(4), -1, 0), preprocess=look(4))
    with pytest.raises(InputError, match=r"not \(height, width, 4\)"):
        cl.explain(net, bands(4)[..., 0], preprocess=look(4))
    with pytest.raises(InputError, match=r"hand over an array \(height, width, 4\)"):
        cl.explain(net, Image.new("RGB", (20, 20)), preprocess=look(4))
    with pytest.raises(InputError, match="one number a channel each"):
        cl.Preprocess((8, 8), (0.5,) * 4, (0.5,) * 3)


def test_three_bands_are_within_rounding_the_picture_itself() -> None:
    values = bands(3, np.uint8, (300, 280))
    picture, frame = IMAGENET(Image.fromarray(values))
    x, same = IMAGENET.bands(values)
    assert frame == same and (x - picture).abs().max() < 1.5 / 255 / min(IMAGENET.std)


@pytest.mark.parametrize("combined", [smooth, augmented, over_layers])
def test_bands_go_with_combinations(combined: Any) -> None:
    more = {"layers": ["features.0", "features.1"]} if combined is over_layers else {}
    values = [bands(6), bands(6)]
    e = combined(net_of(6), values, preprocess=look(6), target=1, **more)
    assert len(e) == 2 and e.pictures.images[0].size == (30, 20) and apart(e.map[0], e.map[1]) < 1e-6
