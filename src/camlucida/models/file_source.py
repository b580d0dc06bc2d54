"""Models of your own training, each in one file with its card: ``file:model.safetensors``.

A card names one of the builders below and nothing else: no code is ever looked up because a file says so.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camlucida.errors import CamlucidaError, ModelError, did_you_mean
from camlucida.files import printable
from camlucida.gap import GAPNet, nin_cifar, nin_imagenet, small_gap, to_gap
from camlucida.gap.card import Card
from camlucida.models import Model, load
from camlucida.models.cards import card_in, told
from camlucida.models.weights import fit, open_weights

FORM = "file:PATH"

BUILDERS: Mapping[str, Callable[..., GAPNet]] = {
    "small_gap": small_gap, "nin_cifar": nin_cifar, "nin_imagenet": nin_imagenet,
}  # fmt: skip
"""The nets that a card can name, beside ``timm/NAME``."""

_RANGES = {"width": (0.05, 16.0), "depth": (1, 64), "dropout": (0.0, 0.95), "rectify": (False, True)}
_OPTIONS = {"small_gap": ("width", "depth", "dropout"), "timm": ("finer",)}
_NIN = ("dropout", "rectify")
_LEAST, _TIMES = 20_000_000, 16.0  # a head that is thrown away may be much of a net: 9/10 of VGG's parameters


def build(path: str, weights: str | None, partial: bool) -> Model:
    """The net that the file's card names, with the file's weights, preprocessing, labels and confidence.

    Raises: ModelError where the file has no card, or one that makes no sense or does not fit the weights.

    >>> build("nowhere.safetensors", None, False)
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: there is no weights file 'nowhere.safetensors'.
    """
    if weights is not None:
        raise ModelError("file:PATH has its weights in the file itself: leave weights= out.")
    file = Path(path).expanduser()  # the shell leaves the ~ of file:~/… to us
    if not os.path.exists(file):
        raise ModelError(f"there is no weights file '{printable(path[:300])}'.")
    card = card_in(file)
    shown = f"'{printable(file.name)}'"
    if card is None:
        raise ModelError(
            f"{shown} has no card, so nothing says which net its weights are of: name the net and pass "
            f"weights={file.name!r} (timm/NAME or FILE.py:CALLABLE)."
        )
    held = open_weights(file)
    try:
        net = rebuilt(card, sum(v.numel() for v in held.state.values()))
    except ModelError as fault:
        raise ModelError(f"{shown}: {fault}") from fault
    notes = (*held.notes, *fit(net, held.state, partial), *told(card))
    return Model(
        net, card.preprocess, name=f"file:{file.name}", labels=card.classes, notes=notes, confident=card.confident
    )


# --------------------------------------------------------------------------------------------------------- building


def rebuilt(card: Card, numbers: int) -> nn.Module:
    """The net that a card names, of about as many parameters as the ``numbers`` of its file. Raises: ModelError."""
    kind = card.model.removeprefix("timm/") if card.model.startswith("timm/") else ""
    if not kind and card.model not in BUILDERS:
        raise ModelError(
            f"its card names the net {printable(card.model[:80])!r}, and code is never run because a file names it: "
            "load the net by your own name for it, with this file as weights: "
            "load('FILE.py:CALLABLE', weights='model.safetensors')."
        )
    with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced by the file's weights at once
        try:
            return _timm(kind, card, numbers) if kind else _ours(card, numbers)
        except (CamlucidaError, TypeError, ValueError, RuntimeError) as fault:
            raise ModelError(f"its card's net cannot be built: {' '.join(str(fault).split())[:300]}") from fault


def _ours(card: Card, numbers: int) -> nn.Module:
    asked = options(card.model, card.options) | {"in_channels": card.preprocess.channels}
    with torch.device("meta"):  # its size, before any memory is spent
        _bounded(BUILDERS[card.model](len(card.classes), **asked), numbers, least=0, times=1.01)
    return BUILDERS[card.model](len(card.classes), **asked)


def _timm(name: str, card: Card, numbers: int) -> nn.Module:
    if card.preprocess.channels != 3:
        raise ModelError("a net of timm takes three channels here.")
    asked = options("timm/", card.options)
    with torch.device("meta"):
        _bounded(load(f"timm/{name}", "random").net, numbers, least=_LEAST, times=_TIMES)
    return to_gap(load(f"timm/{name}", "random").net, len(card.classes), **asked)


def _bounded(net: nn.Module, numbers: int, least: int, times: float) -> None:
    count = sum(p.numel() for p in net.parameters())
    if count > max(least, times * numbers):
        raise ModelError(f"it would have {count:,} parameters, where the file has {numbers:,} numbers.")


def options(model: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a builder, each in its own type. Raises: ModelError for one that it does not take.

    >>> options("small_gap", {"width": 1, "depth": 4})
    {'width': 1.0, 'depth': 4}
    """
    known = _OPTIONS.get(model.partition("/")[0], _NIN)
    return {name: _option(model, name, value, known) for name, value in asked.items()}


def _option(model: str, name: str, value: Any, known: tuple[str, ...]) -> Any:
    if name not in known:
        raise ModelError(f"{model} has no option {printable(name[:40])!r}.{did_you_mean(name, known)}")
    low, high = _RANGES.get(name, (False, True))
    flag = isinstance(low, bool)
    fits = isinstance(value, bool) if flag else isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not low <= value <= high or (type(low) is int and value != int(value)):
        shown = printable(str(value)[:40])
        raise ModelError(f"{name} is {'true or false' if flag else f'from {low} to {high}'}; it is {shown!r}.")
    return type(low)(value)
