"""A model and what one must know of it in one file: weights as safetensors, and its card as JSON beside them."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, final

import torch
from torch import Tensor, nn

from camlucida.errors import CamlucidaError, ModelError
from camlucida.files import printable, write_whole
from camlucida.frame import Preprocess
from camlucida.version import __version__

KEY = "camlucida"
"""Where a card lies in the metadata of a safetensors file."""

_MOST = 100_000  # classes
_LARGEST = 4096  # pixels of a side
_LEAST = 1e-3  # of a crop, and of the standard deviation of colours in [0, 1]
_KINDS = {str: "text", dict: "a table", float: "a number", list: "a list"}


@final
@dataclass(frozen=True)
class Card:
    """What a model is: how to build it, its classes and preprocessing, how it was trained, how good it is, whose it is.

    ``model`` and ``options`` name the builder; ``accuracy`` holds ``top1``, ``mean_per_class``, ``per_class``,
    ``calibration_error``, ``pictures`` (their number) and ``on`` (which they are); the logits were divided by
    ``temperature``; an answer whose probability lies below ``confident`` is one of low confidence.

    Raises: ModelError for a card that makes no sense.

    >>> Card("small_gap", {}, ("cat", "dog"), Preprocess((64, 64), (0.5,), (0.25,))).classes
    ('cat', 'dog')
    """

    model: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    confident: float | None = None
    origin: str = ""
    licence: str = ""
    notes: tuple[str, ...] = ()
    version: str = __version__

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= _MOST:
            raise ModelError(f"a card has 1 to {_MOST:,} classes; this one has {len(self.classes):,}.")
        if max(self.preprocess.size) > _LARGEST:
            raise ModelError(f"a card's pictures have sides of at most {_LARGEST}; here {self.preprocess.size}.")
        if self.preprocess.crop < _LEAST or min(self.preprocess.std) < _LEAST:
            raise ModelError(f"a card's crop and std are {_LEAST} or more; here {self.preprocess}.")
        if not 0 < self.temperature < math.inf:
            raise ModelError(f"a card's temperature is a number above 0; here {self.temperature}.")
        if self.confident is not None and not 0 <= self.confident <= 1:
            raise ModelError(f"a card's confident is a probability; here {self.confident}.")

    def as_json(self) -> str:
        """As one line of JSON; what is NaN is null there."""
        return json.dumps(_finite(asdict(self)), allow_nan=False)

    def markdown(self) -> str:
        """The model card for people."""
        found = self.accuracy.get("per_class")
        each = found if isinstance(found, Mapping) else {}
        views = self.recipe.get("augment")
        how = {k: v for k, v in self.recipe.items() if k != "augment"} | (views if isinstance(views, dict) else {})
        notes = "".join(f"\n{_plain(note)}\n" for note in self.notes)
        classes = _rows("class", "right", {c: _percent(each.get(c)) for c in self.classes})
        recipe = f"\n## Recipe\n\n{_rows('', '', how)}" if how else ""
        return f"# Model card\n\n{_rows('', '', self._facts())}{notes}\n## Classes\n\n{classes}{recipe}"

    def _facts(self) -> dict[str, str]:
        a, p = self.accuracy, self.preprocess
        options = "".join(f", {k} = {v}" for k, v in self.options.items())
        high, wide = p.size
        norm = f"mean {_list(p.mean)}, standard deviation {_list(p.std)}"
        return {
            "model": f"{self.model}{options}",
            "classes": f"{len(self.classes):,}",
            "pictures": f"{wide} × {high} pixels, {p.channels} channels, {p.fit} ({p.crop:g}), {norm}",
            "right (top-1)": _percent(a.get("top1")),
            "mean of the classes": _percent(a.get("mean_per_class")),
            "calibration error": _percent(a.get("calibration_error")),
            "judged on": str(a.get("on", "not known")),
            "temperature": f"{self.temperature:.4g}",
            "low confidence": "not known" if self.confident is None else f"below {_percent(self.confident)}",
            "origin": self.origin or "not told",
            "licence": self.licence or "not told",
            "made with": f"camlucida {self.version}",
        }


# ---------------------------------------------------------------------------------------------------------- the file


def save_model(path: str | os.PathLike[str], net: nn.Module, card: Card, half: bool = False) -> Path:
    """Write weights and card as one safetensors file, whole or not at all; ``half``: in 16 bits where they fit in.

    Raises: OutputError where the file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    state = {k: stored(v, half) for k, v in net.state_dict().items()}
    content = to_bytes(state, {KEY: card.as_json()})
    return write_whole(path, lambda file: _put(content, file))


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def stored(tensor: Tensor, half: bool) -> Tensor:
    """A tensor as a file keeps it: in 16 bits where that was asked for and its numbers fit in."""
    tensor = tensor.detach().cpu().contiguous().clone()  # a copy each: the format knows no shared memory
    if not (half and tensor.dtype == torch.float32):
        return tensor
    small = tensor.half()
    return small if bool(small.isfinite().all()) else tensor


def read_card(path: str | os.PathLike[str]) -> Card | None:
    """The card in a safetensors file; None where it has none.

    Raises: ModelError where the file is of another kind, or its card makes no sense.
    """
    from safetensors import SafetensorError, safe_open

    shown = f"'{printable(Path(path).name)}'"
    try:
        with safe_open(path, "pt") as held:
            text = (held.metadata() or {}).get(KEY)
    except (SafetensorError, OSError, ValueError) as fault:
        raise ModelError(f"{shown} cannot be read as a safetensors file: {fault}.") from fault
    try:
        return None if text is None else card_of(text)
    except ModelError as fault:
        raise ModelError(f"the card in {shown} makes no sense: {fault}") from fault


def card_of(text: str) -> Card:
    """The card that `Card.as_json` wrote; what this version does not know is left out.

    Raises: ModelError for one that makes no sense.

    >>> card_of("[]")
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: a card is a table in JSON.
    """
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise ModelError(f"it is no JSON ({fault}).") from fault
    if not isinstance(told, dict):
        raise ModelError("a card is a table in JSON.")
    known = {name: _FIELDS[name](name, told[name]) for name in _FIELDS if name in told}
    if missing := [f.name for f in fields(Card)[:4] if f.name not in known]:
        raise ModelError(f"it does not tell {', '.join(missing)}.")
    return Card(**known)


# ---------------------------------------------------------------------------------------------------- what it may say


def _must(name: str, value: Any, kind: type) -> Any:
    number = kind is float and isinstance(value, int | float) and not isinstance(value, bool)
    if not (number or (kind is not float and isinstance(value, kind))):
        raise ModelError(f"{name} is {_KINDS[kind]}, not {printable(str(value)[:40])!r}.")
    try:
        return float(value) if kind is float else value
    except OverflowError as fault:
        raise ModelError(f"{name} is a number beyond all numbers.") from fault


def _text(name: str, value: Any) -> str:
    return str(_must(name, value, str))


def _table(name: str, value: Any) -> dict[str, Any]:
    return dict(_must(name, value, dict))


def _number(name: str, value: Any) -> float:
    return float(_must(name, value, float))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(name, v) for v in _must(name, value, list))


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    found = tuple(_number(name, v) for v in _must(name, value, list))
    if not all(map(math.isfinite, found)):
        raise ModelError(f"{name} has numbers that are not finite.")
    return found


def _look(name: str, value: Any) -> Preprocess:
    told = _must(name, value, dict)
    how: dict[str, Callable[[str, Any], Any]] = {
        "size": _numbers, "mean": _numbers, "std": _numbers, "crop": _number, "fit": _text, "interpolation": _text,
    }  # fmt: skip
    known = {k: how[k](f"{name}.{k}", v) for k, v in told.items() if k in how}
    try:
        return Preprocess(**{**known, "size": tuple(map(int, known["size"]))})
    except (CamlucidaError, KeyError, TypeError) as fault:
        raise ModelError(f"its preprocessing cannot be done ({fault}).") from fault


_FIELDS: Mapping[str, Callable[[str, Any], Any]] = {
    "model": _text, "options": _table, "classes": _texts, "preprocess": _look, "recipe": _table, "accuracy": _table,
    "temperature": _number, "confident": lambda n, v: None if v is None else _number(n, v), "origin": _text,
    "licence": _text, "notes": _texts, "version": _text,
}  # fmt: skip


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(value: Any) -> str:
    share = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return f"{100 * value:.1f} %" if share else "not known"


def _plain(value: Any) -> str:
    """Any text on one line of a table of Markdown."""
    text = ", ".join(f"{v}" for v in value) if isinstance(value, list | tuple) else str(value)
    return printable(" ".join(text.split())).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _rows(left: str, right: str, facts: Mapping[str, Any]) -> str:
    return f"| {left} | {right} |\n|---|---|\n" + "".join(f"| {_plain(k)} | {_plain(v)} |\n" for k, v in facts.items())


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:g}" for v in values)
