"""Whose error it is: one from inside the user's net is not a bug of ours."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import camlucida
from camlucida.errors import CamlucidaError, ModelError

_OURS = os.path.dirname(os.path.realpath(camlucida.__file__)) + os.sep
_RUNNING = os.path.join("torch", "nn", "modules", "module.py")


@contextmanager
def of_model(doing: str) -> Iterator[None]:
    """Errors that the net itself raises become a `ModelError` that says what it was ``doing``; others pass.

    >>> import torch
    >>> with of_model("on cat.jpg"):
    ...     torch.nn.Linear(3, 1)(torch.zeros(2))
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: the model fails on cat.jpg: RuntimeError: ...
    """
    try:
        yield
    except CamlucidaError:
        raise
    except Exception as problem:
        if not _in_model(problem):
            raise
        said = " ".join(str(problem).split())[:300]
        raise ModelError(f"the model fails {doing}: {type(problem).__name__}: {said}") from problem


def _in_model(problem: Exception) -> bool:
    """Whether its modules were running, and camlucida was not."""
    files = [os.path.realpath(frame.filename) for frame in traceback.extract_tb(problem.__traceback__)]
    return any(file.endswith(_RUNNING) for file in files) and not files[-1].startswith(_OURS)
