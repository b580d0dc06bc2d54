"""Where a heat map is strong: its connected regions above a level, and the boxes around them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida.view.colour import Heat, plane

Labels = NDArray[np.intp]


def around(heat: Heat, level: float = 0.5) -> list[tuple[int, int, int, int]]:
    """The boxes (left, top, right, bottom) around the regions where `heat`, ``(h, w)``, is at least `level`.

    Pixels that touch at a corner are one region. The region that holds the most evidence comes first. What is NaN,
    never seen, belongs to none.

    >>> around(np.array([[0.0, 0.9, 0.0, 0.6], [0.7, 0.0, 0.0, 0.0]]))
    [(0, 0, 2, 2), (3, 0, 4, 1)]
    """
    heat = np.nan_to_num(plane(heat), nan=-np.inf)
    numbers = connected(heat >= level)
    count = int(numbers.max(initial=0))
    if not count:
        return []
    total = np.bincount(numbers.ravel(), np.where(numbers > 0, heat, 0).ravel(), count + 1)[1:]
    rows, columns = np.nonzero(numbers)
    which = numbers[rows, columns] - 1
    ends = [_ends(which, axis, count) for axis in (columns, rows)]
    found = np.stack([ends[0][0], ends[1][0], ends[0][1] + 1, ends[1][1] + 1], 1)
    return [
        (left, top, right, bottom) for left, top, right, bottom in found[np.argsort(-total, kind="stable")].tolist()
    ]


def connected(inside: NDArray[np.bool_]) -> Labels:
    """The number of the region that each pixel of a mask ``(h, w)`` belongs to, from 1; 0 outside.

    >>> connected(np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)).tolist()
    [[1, 1, 0], [0, 0, 0], [0, 2, 2]]
    """
    # every run of a row is a node; runs of neighbouring rows that touch, corners included, have the same root
    edges = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (row, start), stop = np.nonzero(edges == 1), np.nonzero(edges == -1)[1]
    root = _rooted(row, start, stop)
    _, number = np.unique(root, return_inverse=True)
    labels = np.zeros(inside.shape, np.intp)
    labels[inside] = np.repeat(number + 1, stop - start)
    return labels


def _rooted(row: Labels, start: Labels, stop: Labels) -> Labels:
    parent = list(range(len(row)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above = 0
    for run in range(len(row)):
        while row[above] < row[run] - 1 or (row[above] == row[run] - 1 and stop[above] < start[run]):
            above += 1
        other = above
        while other < run and row[other] == row[run] - 1 and start[other] <= stop[run]:
            low, high = sorted((root(run), root(other)))
            parent[high] = low
            other += 1
    return np.array([root(run) for run in range(len(row))], np.intp)


def _ends(which: Labels, values: Labels, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    low, high = np.full(count, np.iinfo(np.intp).max), np.full(count, -1)
    np.minimum.at(low, which, values)
    np.maximum.at(high, which, values)
    return low, high
