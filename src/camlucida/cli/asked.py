"""From the words of a command line to targets, methods, layers and files."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from camlucida import registry
from camlucida.core import layers, targets
from camlucida.core.scope import named, unwrap
from camlucida.core.targets import ClassTarget
from camlucida.errors import InputError, MethodError, TargetError, did_you_mean
from camlucida.files import printable
from camlucida.images import ENDINGS
from camlucida.registry import Method


@dataclass(frozen=True)
class Asked:
    """What should be explained, and how, in the user's words."""

    targets: tuple[str, ...]
    top: int | None
    methods: str
    layer: str | None
    score: str
    output: str | None = None


def pictures(places: Sequence[str]) -> list[str]:
    """Every picture named, and of a folder the pictures directly in it, by name.

    Raises: InputError for a folder without any.

    >>> pictures(["a.jpg", "b.jpg"])
    ['a.jpg', 'b.jpg']
    """
    return [file for place in places for file in (_inside(place) if os.path.isdir(place) else [place])]


def _inside(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as fault:
        raise InputError(f"cannot look into folder '{printable(folder)}': {fault.strerror}.") from fault
    files = [os.path.join(folder, n) for n in names if Path(n).suffix.lower() in ENDINGS and not n.startswith(".")]
    found = [file for file in files if os.path.isfile(file)]
    if not found:
        kinds = ", ".join(sorted(ENDINGS)[:5])
        raise InputError(f"folder '{printable(folder)}' holds no picture of its own (files that end in {kinds}, …).")
    return found


def methods(words: str) -> list[Method]:
    """The methods named, separated by commas, each once.

    Raises: MethodError, with the nearest names.

    >>> [m.name for m in methods("grad-cam, layercam")]
    ['gradcam', 'layercam']
    """
    names = [w.strip() for w in words.split(",") if w.strip()]
    if not names:
        raise MethodError(f"no method was named.{did_you_mean('', registry.list_methods())}")
    return list({m.name: m for m in map(registry.get, names)}.values())


def layer(net: nn.Module, word: str | None) -> str | int | None:
    """The layer's own name; a number that is no name is a place counted among those of `camlucida layers`.

    Raises: LayerError, with the nearest names.

    >>> layer(nn.Sequential(nn.Conv2d(3, 8, 3)), "0"), layer(nn.Sequential(nn.Conv2d(3, 8, 3)), "-1")
    ('0', -1)
    """
    if word is None:
        return None
    if re.fullmatch(r"-?\d{1,6}", word) and word not in named(unwrap(net)):
        return int(word)
    return layers.resolve(net, word)


def output(word: str | None) -> str | int | None:
    """The part of the model's answer that is meant; a number is a place.

    >>> output("logits"), output("-1")
    ('logits', -1)
    """
    return int(word) if word is not None and re.fullmatch(r"-?\d{1,6}", word) else word


def check(asked: Asked) -> None:
    """Whatever can be wrong with targets before a model is at hand. Raises: TargetError."""
    if asked.targets and asked.top:
        raise TargetError("--target names classes, --top takes each picture's own best: use one of them.")
    targets.rank(1, asked.score)


def wanted(asked: Asked, labels: Sequence[str]) -> list[ClassTarget]:
    """The targets named, each once; without any, each picture's own best class.

    Raises: TargetError for a label that the model does not have, or has twice.

    >>> wanted(Asked(("1,dog",), None, "gradcam", None, "logit"), ["cat", "dog", "hen"])
    [ClassTarget(indices=(1,), rank=0, score='logit', kind='class')]
    """
    check(asked)
    if not asked.targets:
        return targets.top(asked.top or 1, asked.score)
    found = [i for words in asked.targets for i in _classes(words, labels)]
    return [targets.classes(i, asked.score) for i in dict.fromkeys(found)]


def tag(target: ClassTarget) -> str:
    """A target in a file's name: by index, since a label may be any text.

    >>> tag(targets.classes(281)), tag(targets.rank(2))
    ('class281', 'top2')
    """
    return f"class{target.indices[0]}" if target.indices else f"top{target.rank + 1}"


def _classes(words: str, labels: Sequence[str]) -> list[int]:
    """A label may hold commas itself, so the whole is tried first."""
    whole = _named(words, labels)
    pieces = [words] if len(whole) == 1 else [w for w in words.split(",") if w.strip()]
    if not pieces:
        raise TargetError("--target names no class.")
    return [_class(piece.strip(), labels) for piece in pieces]


def _class(word: str, labels: Sequence[str]) -> int:
    if re.fullmatch(r"[+-]?\d{1,9}", word):
        return int(word)
    found = _named(word, labels)
    if len(found) == 1:
        return found[0]
    shown = printable(word[:80])
    if found:
        raise TargetError(f"'{shown}' is the name of classes {' and '.join(map(str, found))}: give the index.")
    if not labels:
        raise TargetError(f"this model's classes have no names: give an index, not '{shown}'.")
    known = dict.fromkeys(name for text in labels for name in (*text.split(", "), text))
    raise TargetError(f"there is no class '{shown}'.{did_you_mean(word, known)}")


def _named(word: str, labels: Sequence[str]) -> list[int]:
    """The classes whose whole label is this word, else those that have it among their names (`tench, Tinca tinca`)."""
    word = word.strip().casefold()
    whole = [i for i, text in enumerate(labels) if text.strip().casefold() == word]
    return whole or [i for i, text in enumerate(labels) if word in map(str.strip, text.casefold().split(","))]
