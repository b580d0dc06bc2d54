"""Preprocessing measured from a transform: the same `Preprocess`, the same pixels, or a refusal that says why."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from camlucida.errors import InputError
from camlucida.frame import IMAGENET, Preprocess
from camlucida.models.measure import Kept, Swapped, Untold, measured

HALF = ((0.5,) * 3, (0.5,) * 3)
KNOWN = {
    "imagenet": IMAGENET,
    "odd margin": Preprocess((96, 96), *HALF, crop=96 / 107),
    "whole": Preprocess((64, 64), *HALF, crop=1.0, interpolation="bicubic"),
    "squashed": Preprocess((64, 48), (0.1, 0.2, 0.3), (0.4, 0.3, 0.2), 1.0, "squash", "nearest"),
    "squashed, then cut": Preprocess((56, 56), *HALF, 56 / 64, "squash", "bicubic"),
    "letterbox": Preprocess((80, 64), *HALF, 1.0, "letterbox", "lanczos"),
    "grey": Preprocess((64, 64), (0.4,), (0.3,), 0.8, "crop"),
    "raw numbers": Preprocess((64, 64), (0.0,) * 3, (0.00392157,) * 3, 0.8, "crop"),
}


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("case", KNOWN)
def test_what_is_known_is_found_again(case: str) -> None:
    how = KNOWN[case]
    assert measured(lambda picture: how(picture)[0]) == how


def test_blue_first_is_seen_and_done() -> None:
    how = Preprocess((64, 64), (0.0,) * 3, (1.0,) * 3, 0.8)
    found = measured(lambda picture: how(picture)[0].flip(0))
    assert isinstance(found, Swapped)
    scene = picture(90, 120)
    assert torch.equal(found(scene)[0], how(scene)[0].flip(0)) and found(scene)[1] == how(scene)[1]


def test_a_size_that_goes_with_the_picture_is_kept() -> None:
    def transform(picture: Image.Image) -> torch.Tensor:
        w, h = picture.size
        return Preprocess((40 * h // min(w, h), 40 * w // min(w, h)), *HALF, 1.0, "squash")(picture)[0]

    found = measured(transform)
    assert isinstance(found, Kept)
    x, frame = found(picture(200, 100))
    assert x.shape == (3, 40, 80) and torch.equal(x, transform(picture(200, 100)))
    assert frame.covers_all and frame.box == (0, 0, 200, 100)


def _corner(picture: Image.Image) -> torch.Tensor:
    return IMAGENET(picture.crop((0, 0, *(side // 2 for side in picture.size))))[0]


def _native(picture: Image.Image) -> torch.Tensor:
    """The middle as it is, without resizing: of pictures of one size, this looks like a share of them."""
    left, top = (side // 2 - 112 for side in picture.size)
    return Preprocess((224, 224), *HALF, crop=1.0)(picture.crop((left, top, left + 224, top + 224)))[0]


def _curved(picture: Image.Image) -> torch.Tensor:
    return IMAGENET(picture)[0].sigmoid()


def _jagged(picture: Image.Image) -> torch.Tensor:
    x, _ = Preprocess((256, 256), *HALF, 1.0, "squash", "nearest")(picture.resize((64, 64)))
    return x


def _fails(_: Image.Image) -> torch.Tensor:
    raise AttributeError("no ndim")


@pytest.mark.parametrize(
    ("transform", "why"),
    [
        (_corner, "cuts the picture"),
        (_native, "cuts the picture"),
        (_curved, "changes the values"),
        (_jagged, "resizes a picture"),
        (_fails, r"fails on a picture \(AttributeError: no ndim\)"),
        (lambda p: IMAGENET(p)[0][None], r"shape \(1, 3, 224, 224\)"),
    ],
)
def test_what_has_no_word_is_refused_when_a_picture_comes(transform: Callable[[Image.Image], Any], why: str) -> None:
    found = measured(transform)
    assert isinstance(found, Untold)
    with pytest.raises(InputError, match=f"{why}.*ready batch"):
        found(picture(60, 40))
