"""Many rows in chunks that fit into memory, and half of a chunk where it did not."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

R = TypeVar("R")
CHUNK_BYTES = 2**28  # on a processor; on a GPU a share of its free memory is taken
CACHED = 2**24  # memory that is used again and again without being handed back in between
_LEAST = 4  # rows of a chunk: two of them may be the undisturbed one


def rows_that_fit(like: Tensor, each: int) -> int:
    """How many rows like this one fit at a time, where each needs ``each`` times its own memory on its way."""
    room = CHUNK_BYTES
    if like.device.type == "cuda":
        room = torch.cuda.mem_get_info(like.device)[0] // 4
    return max(_LEAST, room // (each * like.numel() * like.element_size()))


def few_rows(like: Tensor, each: int) -> int:
    """How many rows stay in a processor's caches, for chunks that cost nothing by themselves; on a GPU as many as fit.

    >>> few_rows(torch.zeros(2048, 7, 7), 4)
    41
    """
    most = rows_that_fit(like, each)
    return (
        most if like.device.type == "cuda" else min(most, max(_LEAST, CACHED // (like.numel() * like.element_size())))
    )


def in_chunks(count: int, size: int, answer: Callable[[Int[Tensor, " m"]], R]) -> list[R]:
    """What ``answer`` makes of the rows 0 to ``count − 1``, at most ``size`` at a time; half as many where memory runs
    out.

    >>> in_chunks(5, 3, lambda rows: rows.tolist())
    [[0, 1, 2], [3, 4]]
    """
    start, found = 0, []
    while start < count:
        rows = torch.arange(start, min(start + size, count))
        try:
            found.append(answer(rows))
        except (torch.OutOfMemoryError, RuntimeError) as fault:
            if len(rows) <= _LEAST or not _out_of_memory(fault):
                raise
            size = math.ceil(len(rows) / 2)
            continue
        start += len(rows)
    return found


def _out_of_memory(fault: Exception) -> bool:
    return isinstance(fault, torch.OutOfMemoryError) or "allocate memory" in str(fault)
