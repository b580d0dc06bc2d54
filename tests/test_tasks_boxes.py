"""Forms of detectors' answers, box arithmetic by hand, and what is refused rather than guessed."""

import itertools
from typing import Any

import pytest
import torch

from camlucida.errors import TargetError
from camlucida.tasks.boxes import Beside, Found, corners, overlap, read, suppressed


def share(a: list[float], b: list[float]) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def some(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2, dtype=torch.float64) * 10
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, dtype=torch.float64) * 6], 1)


def test_overlap_is_intersection_over_union() -> None:
    boxes = some(30)
    for one in boxes[:5]:
        expected = [share(b, one.tolist()) for b in boxes.tolist()]
        assert overlap(boxes, one).tolist() == pytest.approx(expected)
    assert overlap(torch.zeros(1, 4), torch.zeros(4)).tolist() == [0.0]  # no area: no overlap, and no NaN


def test_suppression_is_greedy_within_each_class() -> None:
    boxes, scores = some(40), torch.rand(40, 3, dtype=torch.float64)
    kept: list[int] = []
    best = [(max(row), row.index(max(row))) for row in scores.tolist()]
    for i in sorted(range(40), key=lambda i: -best[i][0]):
        if all(best[j][1] != best[i][1] or share(boxes[j].tolist(), boxes[i].tolist()) < 0.3 for j in kept):
            kept.append(i)
    assert suppressed(Found(boxes, scores), 0.3) == kept and 3 < len(kept) < 40
    assert suppressed(Found(torch.zeros(0, 4), torch.zeros(0, 3)), 0.3) == []


def test_corners_are_half_a_side_from_the_centre() -> None:
    assert corners(torch.tensor([[10.0, 20.0, 4.0, 6.0]])).tolist() == [[8.0, 17.0, 12.0, 23.0]]


@pytest.mark.parametrize(("classes", "nothing"), [*itertools.product([3, 4], [None, True, False])])
def test_the_last_of_queries_logits_is_nothing_where_the_model_has_one_class_fewer(
    classes: int, nothing: bool | None
) -> None:
    y = torch.randn(1, 5, 4)
    found = read({"logits": y, "pred_boxes": torch.rand(1, 5, 4)}, Beside((10, 20), classes, nothing))[0]
    softmax = nothing if nothing is not None else classes == 3
    expected = y[0].softmax(1)[:, :3] if softmax else y[0].sigmoid()
    assert torch.allclose(found.scores, expected) and found.boxes[:, 2].max() <= 30


def test_a_box_of_its_own_score_multiplies() -> None:
    y = torch.rand(1, 9, 7)
    found = read(y, Beside())[0]
    assert torch.allclose(found.of(1), y[0, :, 4] * y[0, :, 6])


@pytest.mark.parametrize(
    "output",
    [torch.zeros(1, 5), torch.zeros(1, 4, 5), {"logits": torch.zeros(1, 5)}, {"boxes": torch.zeros(1, 4)}, None, "text",
     torch.zeros(1, 3, 20), {"logits": torch.zeros(1, 3, 8, 8), "pred_boxes": torch.zeros(1, 3, 4)}],
)  # fmt: skip
def test_what_is_no_detection_is_an_error_that_tells_what_came(output: Any) -> None:
    with pytest.raises(TargetError, match=r"needs boxes with scores.*output="):
        read(output, Beside())


@pytest.mark.parametrize("shape", [(1, 20, 7), (1, 7, 20)])
def test_scores_that_are_no_probabilities_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TargetError, match="from 0 to 1; these go from"):
        read(torch.full(shape, -3.0), Beside())
