"""Views: where each pixel comes from, against a slow twin; mixtures that keep sums; bits that come again."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from camlucida.errors import InputError
from camlucida.gap.augment import Augment, disturb, mix, view

STILL = Augment(area=(1.0, 1.0), ratio=1.0, turn=0.0, flip=0.0, colour=0.0, erase=0.0, mix=0.0)


def still(**changes: Any) -> Augment:
    return Augment(**{**vars(STILL), **changes})


def picture(h: int, w: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=Generator().manual_seed(seed))


def draws(seed: int) -> list[float]:
    return torch.rand(6, generator=Generator().manual_seed(seed)).tolist()


def folded(at: float, n: int) -> float:
    """A place mirrored at the edges of ``n`` pixels, then kept within their centres."""
    at = (at + 0.5) % (2 * n)
    at = 2 * n - at if at > n else at
    return min(max(at - 0.5, 0.0), n - 1.0)


def twin(pixels: Tensor, size: int, how: Augment, seed: int) -> Tensor:
    """The view pixel by pixel: the rectangle's own axes are turned in pixels of the picture, not in its fractions."""
    _, height, width = pixels.shape
    area, ratio, turn, flip, u, v = draws(seed)
    share, bent = math.sqrt(how.area[0] + area * (how.area[1] - how.area[0])), how.ratio ** (ratio - 0.5)
    w, h, angle = share * bent * width, share / bent * height, math.radians((2 * turn - 1) * how.turn)
    cx = width / 2 + (2 * u - 1) * abs(width - w) / 2
    cy = height / 2 + (2 * v - 1) * abs(height - h) / 2
    seen = torch.zeros(3, size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            x, y = ((column + 0.5) / size - 0.5) * w, ((row + 0.5) / size - 0.5) * h
            x = -x if flip < how.flip else x
            px = folded(cx + x * math.cos(angle) - y * math.sin(angle) - 0.5, width)
            py = folded(cy + x * math.sin(angle) + y * math.cos(angle) - 0.5, height)
            x0, y0 = int(px), int(py)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            fx, fy = px - x0, py - y0
            top = pixels[:, y0, x0] * (1 - fx) + pixels[:, y0, x1] * fx
            low = pixels[:, y1, x0] * (1 - fx) + pixels[:, y1, x1] * fx
            seen[:, row, column] = (top * (1 - fy) + low * fy) / 255
    return seen


@given(seed=st.integers(0, 2**31), h=st.integers(5, 17), w=st.integers(5, 17), size=st.integers(3, 9))
@settings(max_examples=25, deadline=None)
def test_every_pixel_comes_from_where_the_slow_twin_says(seed: int, h: int, w: int, size: int) -> None:
    how = Augment(area=(0.1, 2.0), ratio=2.0, turn=40.0)
    made = view(picture(h, w), size, how, Generator().manual_seed(seed))
    assert torch.allclose(made.double(), twin(picture(h, w), size, how, seed), atol=1e-4)


def test_without_any_change_the_view_is_the_picture() -> None:
    assert torch.allclose(view(picture(12, 12), 12, STILL, Generator()), picture(12, 12) / 255, atol=1e-6)


def test_a_mirrored_view_is_the_mirrored_picture() -> None:
    made = view(picture(12, 12), 12, still(flip=1.0), Generator())
    assert torch.allclose(made, picture(12, 12).flip(2) / 255, atol=1e-6)


def test_half_of_the_views_are_mirrored() -> None:
    same = picture(6, 6) / 255
    g = Generator().manual_seed(0)
    kept = sum(torch.allclose(view(picture(6, 6), 6, still(flip=0.5), g), same, atol=1e-5) for _ in range(200))
    assert 80 <= kept <= 120


def test_disturbing_by_nothing_changes_nothing() -> None:
    x = torch.rand(3, 3, 8, 8)
    assert torch.allclose(disturb(x, STILL, Generator()), x, atol=1e-6)


def test_colours_stay_within_bounds_and_each_picture_changes_by_itself() -> None:
    x = torch.rand(1, 3, 8, 8).expand(6, -1, -1, -1)
    made = disturb(x, still(colour=0.9), Generator().manual_seed(0))
    assert made.min() >= 0 and made.max() <= 1
    assert len({round(float(m.mean()), 5) for m in made}) == 6
    bright = disturb(torch.full((400, 3, 2, 2), 0.5), still(colour=0.4), Generator().manual_seed(0)).mean((1, 2, 3))
    assert 0.29 < bright.min() < 0.32 and 0.68 < bright.max() < 0.71  # 0.5 (1 ± 0.4)


def test_some_pictures_lose_a_rectangle_to_their_mean_colour() -> None:
    x = torch.rand(400, 3, 16, 16)
    made = disturb(x, still(erase=0.25), Generator().manual_seed(0))
    changed = ((made - x).abs() > 1e-5).all(1)  # b h w
    hit = changed.flatten(1).any(1)
    assert 70 <= int(hit.sum()) <= 130
    for i in hit.nonzero().flatten().tolist()[:20]:
        rows, columns = changed[i].any(1).sum(), changed[i].any(0).sum()
        assert int(changed[i].sum()) == int(rows * columns)  # a rectangle
        assert 0.02 <= float(changed[i].float().mean()) <= 0.32
        place = changed[i].nonzero()[0]
        assert torch.allclose(made[i, :, place[0], place[1]], x[i].mean((1, 2)), atol=1e-5)


@given(seed=st.integers(0, 2**31), b=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_mixtures_keep_sums_and_the_shares_are_those_of_the_pixels(seed: int, b: int) -> None:
    x = torch.arange(b, dtype=torch.float32).view(b, 1, 1, 1).expand(b, 3, 16, 16) ** 2
    y = torch.eye(b)
    made, shares = mix(x, y, still(mix=1.0), Generator().manual_seed(seed))
    assert torch.allclose(shares.sum(1), torch.ones(b)) and bool((shares >= 0).all())
    expected = shares @ (torch.arange(b, dtype=torch.float32) ** 2)  # of each picture as much as the shares say
    assert torch.allclose(made.mean((1, 2, 3)), expected, atol=1e-4)
    assert bool((shares.diagonal() >= 0.3).all())  # at most 0.6 of it goes, and what whole pixels round up


def test_nothing_is_mixed_where_the_chance_is_nil_and_about_half_where_it_is_half() -> None:
    x, y, g = torch.rand(2, 3, 8, 8), torch.eye(2), Generator().manual_seed(0)
    assert mix(x, y, still(mix=0.0), g)[0] is x
    times = sum(mix(x, y, still(mix=0.5), g)[0] is x for _ in range(200))
    assert 75 <= times <= 125


def test_the_same_generator_gives_the_same_bits() -> None:
    def once() -> Tensor:
        g = Generator().manual_seed(3)
        x = disturb(view(picture(20, 30), 16, Augment(), g)[None].repeat(4, 1, 1, 1), Augment(erase=1.0), g)
        return mix(x, torch.eye(4), Augment(mix=1.0), g)[0]

    assert torch.equal(once(), once())


@pytest.mark.parametrize(
    "wrong",
    [{"area": (0.0, 1.0)}, {"area": (0.5, 0.2)}, {"ratio": 0.5}, {"turn": 200.0}, {"flip": 1.5}, {"mix": -0.1}],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Augment(**wrong)
