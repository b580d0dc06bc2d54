"""Your own code as a source: ``package.module:callable`` and ``path/to/file.py:callable``, called without arguments."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from camlucida.errors import ModelError, did_you_mean
from camlucida.files import printable
from camlucida.frame import IMAGENET, Preprocess
from camlucida.models import Model
from camlucida.models.cards import card_in, told
from camlucida.models.weights import fit, open_weights

FORM = "FILE.py:CALLABLE"


def build(name: str, weights: str | None, partial: bool) -> Model:
    """The net that ``callable()`` gives: an `nn.Module`, or anything with ``net``, ``preprocess`` and ``labels``.

    Where ``weights`` has a card, preprocessing, labels and confidence are the card's.

    Raises: ModelError where the module cannot be found, or fails, with the file and line of its error.

    >>> build("torch.nn:Flatten", None, False).notes
    ('pictures prepared as for ImageNet: the model says nothing else',)
    """
    place, _, attribute = name.rpartition(":")
    if weights == "random":
        raise ModelError(
            "weights='random' is for nets by name; your own callable decides how its net begins: leave it out."
        )
    held, card = (None, None) if weights is None else (open_weights(weights), card_in(Path(weights)))
    made = _made(place, attribute)
    net = made if isinstance(made, nn.Module) and not _complete(made) else getattr(made, "net", None)
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"'{printable(name)}' gave something {_kind(made)}: it must return an nn.Module, or something whose .net "
            "is one, with .preprocess and .labels."
        )
    fitted = (*held.notes, *fit(net, held.state, partial)) if held else ()
    preprocess, said = (card.preprocess, told(card)) if card else _preprocess(made)
    before, sure = (made.notes, made.confident) if isinstance(made, Model) else ((), None)
    return Model(
        net,
        preprocess,
        name=printable(name),
        labels=card.classes if card else _labels(made),
        notes=(*before, *fitted, *said),
        confident=card.confident if card else sure,
    )


def _complete(made: object) -> bool:
    return all(hasattr(made, part) for part in ("net", "preprocess", "labels"))


def _kind(made: object) -> str:
    return f"of type {type(made).__name__}"


def _preprocess(made: object) -> tuple[Preprocess, tuple[str, ...]]:
    own = getattr(made, "preprocess", None)
    if isinstance(own, Preprocess):
        return own, ()
    why = "the model says nothing else" if own is None else "its .preprocess is no camlucida.Preprocess"
    return IMAGENET, (f"pictures prepared as for ImageNet: {why}",)


def _labels(made: object) -> tuple[str, ...]:
    """Names of the classes, given in order or by index."""
    own = getattr(made, "labels", ())
    if isinstance(own, Mapping):
        own = [own.get(i, f"class {i}") for i in range(max(map(int, own), default=-1) + 1)]
    return tuple(map(str, own)) if isinstance(own, list | tuple) else ()


# ------------------------------------------------------------------------------------------------- running user code


def _made(place: str, attribute: str) -> Any:
    file = Path(place) if place.endswith(".py") or "/" in place or os.sep in place else None
    if not attribute.isidentifier():
        raise ModelError(f"'{printable(f'{place}:{attribute}')}' names no callable: write {FORM}.")
    with _importable(file), _blamed(place, file):
        module = _module(place) if file is None else _run_file(file)
        found = getattr(module, attribute, None)
        if found is None:
            known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise ModelError(f"'{printable(place)}' has no '{attribute}'.{did_you_mean(attribute, known)}")
        if not callable(found):
            raise ModelError(f"'{attribute}' in '{printable(place)}' is {_kind(found)}, not callable.")
        return found if isinstance(found, nn.Module) else found()


def _module(place: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise ModelError(f"'{printable(place)}' is neither a Python module nor a .py file.")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as fault:
        if fault.name and (place == fault.name or place.startswith(f"{fault.name}.")):
            raise ModelError(f"there is no Python module '{place}', neither installed nor in this folder.") from fault
        raise


def _run_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise ModelError(f"there is no Python file '{printable(str(file))}'.")
    path = str(file.resolve())
    name = f"_camlucida_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"'{printable(str(file))}' is no Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


@contextlib.contextmanager
def _importable(file: Path | None) -> Iterator[None]:
    """The current folder, and the file's own, as places to import from while the user's code runs."""
    added = [*([str(file.resolve().parent)] if file else []), os.getcwd()]
    sys.path[:0] = added
    try:
        yield
    finally:
        for path in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(path)


@contextlib.contextmanager
def _blamed(place: str, file: Path | None) -> Iterator[None]:
    """Whatever the user's code raises becomes one line that names the line at fault."""
    try:
        yield
    except ModelError:
        raise
    except (Exception, SystemExit) as fault:
        said = printable(" ".join(str(fault).split()))[:300]
        where = _line(fault, place, file)
        raise ModelError(f"{where}: {type(fault).__name__}{': ' if said else ''}{said}") from fault


def _line(fault: BaseException, place: str, file: Path | None) -> str:
    """File and line of the user's own code at fault: the last of it that was running."""
    if isinstance(fault, SyntaxError) and fault.filename:
        return f"{printable(os.path.basename(fault.filename))}:{fault.lineno}"
    frames = traceback.extract_tb(fault.__traceback__)
    module = sys.modules.get(place)
    home = str(file.resolve()) if file else getattr(module, "__file__", None)
    own = [f for f in frames if home and os.path.realpath(f.filename) == os.path.realpath(home)]
    outside = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    last = (own or outside)[-1:]
    return f"{printable(os.path.basename(last[0].filename))}:{last[0].lineno}" if last else printable(place)
