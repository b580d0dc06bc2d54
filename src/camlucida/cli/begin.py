"""What a training run begins with: the user's words, the recipe, and a net with its first weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camlucida.errors import InputError, ModelError
from camlucida.files import printable
from camlucida.frame import Preprocess
from camlucida.gap import GAPNet, to_gap
from camlucida.gap.recipe import Recipe
from camlucida.models import load
from camlucida.models.file_source import BUILDERS, options
from camlucida.models.weights import bare, fit, open_weights

_OWN = Preprocess((128, 128), mean=(0.5,) * 3, std=(0.25,) * 3, crop=1.0, fit="squash")


@dataclass(frozen=True)
class Wanted:
    """What should be trained, and how, in the user's words; ``numbers`` are those of the recipe that were given.

    ``until`` ends the run early, after so many of the recipe's epochs."""

    place: str
    folder: Path
    model: str
    options: Sequence[str]
    weights: str | None
    split: str
    size: int | None
    fit: str | None
    hold_out: float
    numbers: Mapping[str, Any]
    recipe: Path | None
    freeze: bool
    half: bool
    device: str | None
    origin: str
    licence: str
    fresh: bool
    until: int | None = None

    @property
    def file(self) -> Path:
        """The trained model."""
        return self.folder / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The state of a run that is not done."""
        return self.folder / "checkpoint.pt"


@dataclass(frozen=True)
class Begun:
    """A net that has yet to learn, and what its pictures are like."""

    net: nn.Module
    look: Preprocess
    options: dict[str, Any]
    notes: tuple[str, ...] = ()


def numbers(wanted: Wanted) -> dict[str, Any]:
    """The numbers of the file, and over them those of the command line. Raises: InputError."""
    told: Any = {}
    if wanted.recipe is not None:
        try:
            told = json.loads(wanted.recipe.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as fault:
            raise InputError(f"the recipe '{printable(str(wanted.recipe))}' cannot be read: {fault}.") from fault
    if not isinstance(told, dict):
        raise InputError(f"the recipe '{printable(str(wanted.recipe))}' must be one table in JSON: {{...}}.")
    made = told | {k: v for k, v in wanted.numbers.items() if v is not None}
    Recipe.from_dict(made)
    return made


def begun(wanted: Wanted, classes: int, seed: int) -> Begun:
    """The net to begin with, its random weights from the seed. Raises: ModelError."""
    asked = dict(map(_option, wanted.options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if wanted.model in BUILDERS:
            begun = _ours(wanted, classes, options(wanted.model, asked))
        elif wanted.model.startswith("timm/"):
            begun = _timm(wanted, classes, options(wanted.model, asked))
        else:
            begun = _yours(wanted, asked)
    size = begun.look.size if wanted.size is None else (wanted.size, wanted.size)
    look = replace(begun.look, size=size, fit=wanted.fit or begun.look.fit)  # type: ignore[arg-type]  # checked there
    return replace(begun, look=look)


def _option(words: str) -> tuple[str, Any]:
    name, equals, value = words.partition("=")
    if not equals:
        raise ModelError(f"--option is NAME=VALUE, such as width=1.25; it is '{printable(words)}'.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _ours(wanted: Wanted, classes: int, asked: dict[str, Any]) -> Begun:
    net, notes = BUILDERS[wanted.model](classes, **asked), tuple[str, ...]()
    if wanted.weights not in (None, "random"):
        held = open_weights(str(wanted.weights))
        notes = (*held.notes, *fit(net, held.state, partial=True))
        _check_body(net, held.state, str(wanted.weights))
    return Begun(_frozen(net) if wanted.freeze else net, _OWN, asked, notes)


def _check_body(net: GAPNet, state: Mapping[str, Tensor], weights: str) -> None:
    """Only the head may be new: chance hits of a net of another width are no beginning. Raises: ModelError."""
    shapes = {bare(k): v.shape for k, v in state.items()}
    body = {k: v.shape for k, v in net.state_dict().items() if k.startswith("features.") and v.dim()}
    new = [k for k, shape in body.items() if shapes.get(bare(k)) != shape]
    if new:
        raise ModelError(
            f"'{printable(weights)}' fits {len(body) - len(new)} of the {len(body)} tensors before the head ({new[0]} "
            "is not there, or of another shape): are model and --option those that it was trained with?"
        )


def _timm(wanted: Wanted, classes: int, asked: dict[str, Any]) -> Begun:
    loaded = load(wanted.model, wanted.weights)
    net = to_gap(loaded.net, classes, freeze=wanted.freeze, **asked)
    return Begun(net, loaded.preprocess, asked, (*loaded.notes, str(net.report)))


def _yours(wanted: Wanted, asked: Mapping[str, Any]) -> Begun:
    if wanted.model == "builtin" or wanted.model.startswith("file:"):
        raise ModelError("to go on from a trained file name its net and pass it: --model small_gap --weights FILE.")
    if asked:
        raise ModelError("--option is for the nets that come along and for timm/NAME; your own callable has its own.")
    loaded = load(wanted.model, wanted.weights)
    return Begun(_frozen(loaded.net) if wanted.freeze else loaded.net, loaded.preprocess, {}, loaded.notes)


def _frozen(net: nn.Module) -> GAPNet:
    if not isinstance(net, GAPNet):
        raise ModelError(
            f"--freeze keeps what lies before the head of a camlucida.gap.GAPNet; got {type(net).__name__}."
        )
    return GAPNet(net.features, net.head, frozen=True, report=net.report)
