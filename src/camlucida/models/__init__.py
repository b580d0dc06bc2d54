"""Models by name: ``load("timm/resnet50")``, ``load("my_nets.py:build")``, ``load("file:model.safetensors")``.

A source is a file ``<name>_source.py`` in this folder, with ``FORM``, the shape of its names, and
``build(rest, weights, partial) -> Model``. What stands in ``FORM`` before the first capital letter, such as ``timm/``,
is what its names begin with, and ``rest`` is what follows; a ``FORM`` without capitals is the source's one name. One
whose classes are texts says ``PROMPTS = True``, and its ``build`` gets them as a fourth argument; one that knows its
models lists what can follow by ``names()``. A new source is one new file.
"""

import fnmatch
import importlib
import os
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar, final

import torch
from torch import nn

from camlucida.errors import ModelError, did_you_mean
from camlucida.files import printable
from camlucida.frame import Preprocess

N = TypeVar("N", bound=nn.Module)
_FILES = {".safetensors": "file:", ".onnx": "onnx:", ".torchscript": "torchscript:", ".ts": "torchscript:"}


@final
class Model(nn.Module):
    """A net that knows its preprocessing, the names of its classes, and what was done to load it; calls go to ``net``.

    ``confident`` is the probability of the best class below which an answer is of low confidence, where that is known.

    >>> from camlucida.frame import IMAGENET
    >>> model = Model(nn.Flatten(), IMAGENET, name="flat", labels=["cat", "dog"])
    >>> model(torch.zeros(1, 2, 3)).shape, model.labels
    (torch.Size([1, 6]), ('cat', 'dog'))
    """

    net: nn.Module
    preprocess: Preprocess
    labels: tuple[str, ...]
    name: str
    notes: tuple[str, ...]
    confident: float | None

    only_carries = True  # forward is the net's own: explain may look past this module

    def __init__(
        self,
        net: nn.Module,
        preprocess: Preprocess,
        *,
        name: str = "",
        labels: Sequence[str] = (),
        notes: Sequence[str] = (),
        confident: float | None = None,
    ) -> None:
        super().__init__()
        self.net, self.preprocess, self.name = net, preprocess, name
        self.labels, self.notes = tuple(labels), tuple(notes)
        self.confident = confident

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the net itself returns."""
        return self.net(*args, **kwargs)


def load(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    partial: bool = False,
    prompts: str | Sequence[str] = (),
) -> Model:
    """A model by name, in evaluation mode, from any of the sources that `forms` tells: ``timm/NAME``, ``hf/NAME``;
    a file of `camlucida train` as ``file:PATH``; ``builtin``, the one that comes along; or your own code as
    ``package.module:callable`` or ``path/to/file.py:callable``. `list_models` lists names.

    ``weights`` is a file of weights (safetensors, or a PyTorch file that holds nothing else), or ``"random"`` where
    the source can start without any. A file that does not fit in full is refused; ``partial`` takes what fits, and
    the model's ``notes`` say so. ``prompts`` are the texts that stand for classes, where the source takes such.

    Raises: ModelError, for whatever goes wrong; it says what to do.

    >>> load("timm/resnet18", "weights.html")
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: there is no weights file 'weights.html' (random weights are weights='random').
    """
    source, rest = _source(name)
    file = None if weights is None else os.fspath(weights)
    model: Model = source.build(rest, file, partial, *_prompts(name, source, prompts))
    return placed(model, device).eval()


def forms() -> dict[str, str]:
    """What a model can be called, for each source that is installed.

    >>> forms()["timm"]
    'timm/NAME'
    """
    return {name: _room(name).FORM for name in _names()}


@dataclass(frozen=True)
class Names:
    """What one source lists: whole names, as `load` takes them; ``trouble`` says why it cannot be asked."""

    source: str
    form: str
    names: tuple[str, ...] = ()
    trouble: str = ""


def list_models(pattern: str = "") -> list[str]:
    """The names that `load` takes, source by source; those that fit a ``pattern``: a part of a name, or one with ``*``.

    A source whose library cannot be imported lists nothing: `camlucida models` says why.

    >>> "builtin" in list_models("built*")
    True
    """
    return [name for source in listing(pattern) for name in source.names]


def listing(pattern: str = "") -> Iterator[Names]:
    """What each source lists; where a pattern begins as the names of one source do, no other is asked."""
    begins = {source: _beginning(form) for source, form in forms().items()}
    first = re.match(r"[^*?[]*", pattern)[0]  # type: ignore[index]
    owners = [s for s, beginning in begins.items() if beginning and _open(beginning) and first.startswith(beginning)]
    for source in owners or begins:
        room = _room(source)
        try:
            known = [begins[source] + name for name in getattr(room, "names", tuple)()]
        except Exception as fault:  # a library of others that fails in its own way takes no other source with it
            told = str(fault) if isinstance(fault, ModelError) else f"{type(fault).__name__}: {fault}"
            yield Names(source, room.FORM, trouble=" ".join(told.split()))
        else:
            yield Names(source, room.FORM, tuple(name for name in known if _fits(name, pattern)))


def _fits(name: str, pattern: str) -> bool:
    """Whether a name holds a pattern, or, where that has wildcards, is of its shape, with its source or without."""
    low, asked = name.lower(), pattern.lower()
    if set(asked) & set("*?["):
        return any(fnmatch.fnmatchcase(word, asked) for word in (low, low.partition("/")[2]))
    return asked in low


def _prompts(name: str, source: ModuleType, given: str | Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The prompts as a source's last argument, where it takes them. Raises: ModelError where it does not."""
    texts = (given,) if isinstance(given, str) else tuple(given)
    wrong = next((t for t in texts if not isinstance(t, str) or not t.strip()), None)
    if wrong is not None:
        raise ModelError(f"prompts= takes texts, such as ['a dog', 'a cat']; got {wrong!r:.80}.")
    if getattr(source, "PROMPTS", False):
        return (texts,)
    if texts:
        taking = " or ".join(repr(_room(s).FORM) for s in _names() if getattr(_room(s), "PROMPTS", False))
        told = f"leave them out, or name {taking}" if taking else "leave them out"
        raise ModelError(f"{_short(name)} has classes of its own and takes no prompts: {told}.")
    return ()


def _names() -> list[str]:
    ending = "_source"
    return [m.name.removesuffix(ending) for m in pkgutil.iter_modules(__path__) if m.name.endswith(ending)]


def _room(source: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{source}_source")


def _source(name: str) -> tuple[ModuleType, str]:
    """The source that a name belongs to, and what it is called there."""
    begins = {source: _beginning(form) for source, form in forms().items()}
    for source, beginning in begins.items():
        if beginning and (name.startswith(beginning) if _open(beginning) else name == beginning):
            return _room(source), name.removeprefix(beginning)
    if ":" in name:
        return _room("python"), name
    known = " or ".join(repr(form) for form in forms().values())
    first, slash, _ = name.partition("/")
    wrong = did_you_mean(first, [b.rstrip("/:") for b in begins.values() if b]) if slash else _whose(name)
    raise ModelError(f"{_short(name)} names no model: write {known}.{wrong}")


def _beginning(form: str) -> str:
    """What every name of a source begins with: ``timm/`` of ``timm/NAME``; all of it where nothing varies."""
    return re.match("[^A-Z]*", form)[0]  # type: ignore[index]


def _open(beginning: str) -> bool:
    return beginning.endswith(("/", ":"))


def _whose(name: str) -> str:
    if found := _FILES.get(os.path.splitext(name)[1]):
        return f" Did you mean {found + name[:80]!r}?"
    plain = re.fullmatch(r"[\w.-]+", name) and not name.endswith(".py")
    return f" Did you mean {'timm/' + name!r}?" if plain else ""


def _short(name: str) -> str:
    return f"'{printable(name[:80])}'" if len(name) <= 80 else f"'{printable(name[:80])}…'"


def placed(net: N, device: str | torch.device | None) -> N:
    """A net on a device; where none is named, where it is. Raises: ModelError where that cannot be done.

    >>> placed(nn.Linear(1, 1), "nowhere")
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: cannot move the model to device 'nowhere': ...
    """
    try:
        return net if device is None else net.to(torch.device(device))
    except Exception as fault:  # a wrong name, a missing driver, no memory: every backend has errors of its own
        reason = " ".join(str(fault).split())
        raise ModelError(f"cannot move the model to device {str(device)!r}: {reason[:200]}") from fault
