"""Which share of each place of a grid a part of the picture covers, against a loop over fine samples."""

from typing import Any

import numpy as np
import pytest
import torch

from camlucida.core.pictures import Pictures
from camlucida.errors import InputError
from camlucida.frame import Frame
from camlucida.tasks.cover import Cover, overlaps
from camlucida.volumes import Reading, Volume
from camlucida.voxels import Grid

FRAMES = {
    "whole": Frame.whole(20, 12), "crop": Frame(20, 12, (4.0, 1.5, 16.0, 9.0)),
    "letterbox": Frame(20, 12, (-3.0, -5.0, 23.0, 17.0)),
}  # fmt: skip


def pictures(frame: Frame | None, space: tuple[int, ...] = (12, 20)) -> Pictures:
    return Pictures(space, ("picture",), frames=(frame,) if frame else ())


def sampled(inside: Any, frame: Frame, grid: tuple[int, int], fine: int = 40) -> torch.Tensor:
    """The share of ``fine`` × ``fine`` points of each cell that lie inside."""
    left, top, right, bottom = frame.box
    found = torch.zeros(grid, dtype=torch.float64)
    for r in range(grid[0]):
        for c in range(grid[1]):
            for i in range(fine):
                for j in range(fine):
                    y = top + (r + (i + 0.5) / fine) / grid[0] * (bottom - top)
                    x = left + (c + (j + 0.5) / fine) / grid[1] * (right - left)
                    found[r, c] += inside(x, y) / fine**2
    return found


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("kind", ["mask", "box"])
def test_shares_are_those_of_a_fine_sample(frame: Frame, kind: str) -> None:
    mask = torch.zeros(12, 20)
    mask[2:7, 5:11] = 1
    part = Cover.of(mask, None, None) if kind == "mask" else Cover.of(None, (5, 2, 11, 7), None)
    expected = sampled(lambda x, y: 5 <= x < 11 and 2 <= y < 7, frame, (4, 3))
    assert float((part.shares(pictures(frame), (4, 3))[0] - expected).abs().max()) < 0.02


def test_a_masks_values_weigh_its_pixels() -> None:
    mask = torch.tensor([[4.0, 0.0], [2.0, 0.0]])
    assert Cover.of(mask, None, None).shares(pictures(None, (2, 2)), (1, 1)).flatten().tolist() == [0.375]


def test_a_point_is_in_one_place() -> None:
    for x, y in ((0, 0), (19.9, 11.9), (10, 6), (9.99, 5.99)):
        found = Cover.of(None, None, (x, y)).shares(pictures(FRAMES["whole"]), (2, 2))[0]
        assert found.sum() == 1 and found[int(y >= 6), int(x >= 10)] == 1


def test_the_mask_of_a_volume_is_in_the_voxels_of_its_file() -> None:
    """The file's axes run left, posterior, superior; the model sees superior, then right, then anterior."""
    grid = Grid(np.zeros((1, 4, 4, 4), np.float32), np.eye(4), "LPS")
    seen = Pictures((2, 2, 2), ("volume",), originals=(Volume(grid, how=Reading(orientation="SRA", size=(2, 2, 2))),))
    mask = torch.zeros(4, 4, 4)
    mask[0, 2, 1] = 1  # i, j, k of the file
    found = Cover.of(mask, None, None).shares(seen, (4, 4, 4))[0]
    assert found.nonzero().tolist() == [[1, 3, 1]] and float(found.sum()) == 1
    assert seen.lay(found, 0)[0].argmax() == mask.argmax()  # as a map comes back


def test_masks_of_signals_and_volumes() -> None:
    line = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert Cover.of(line, None, None).shares(pictures(None, (4,)), (2,)).tolist() == [[0.5, 0.5]]
    cube = torch.zeros(2, 2, 4)
    cube[0, 1] = 1
    found = Cover.of(cube, None, None).shares(pictures(None, (2, 2, 4)), (2, 1, 2))
    assert found.tolist() == [[[[0.5, 0.5]], [[0, 0]]]]
    with pytest.raises(InputError, match="3 axes of space: use mask="):
        Cover.of(None, (0, 0, 1, 1), None).check(pictures(None, (2, 2, 4)))


def test_overlaps_of_a_whole_axis_add_up() -> None:
    for start, end in ((0.0, 7.0), (1.5, 6.0), (-2.0, 9.0)):
        shares = overlaps(7, 3, start, end)
        assert float(shares.sum() * (end - start) / 3) == pytest.approx(min(end, 7) - max(start, 0))
