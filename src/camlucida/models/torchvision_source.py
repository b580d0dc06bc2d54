"""Models of torchvision, by its registry's names: ``torchvision/resnet50``, ``torchvision/resnet50.IMAGENET1K_V1``."""

import inspect
import re
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import nn

from camlucida.errors import ModelError, did_you_mean
from camlucida.files import printable
from camlucida.frame import IMAGENET, Preprocess
from camlucida.models import Model
from camlucida.models.guests import imported
from camlucida.models.measure import measured
from camlucida.models.weights import Weights, bare, fit, open_weights

FORM = "torchvision/NAME"

_PLAIN = re.compile(r"\w{1,100}(\.\w{1,100})?", re.ASCII)


def build(name: str, weights: str | None, partial: bool) -> Model:
    """The model called ``name`` in torchvision's registry, with its weights, random ones, or those of a file.

    What its weights' own transform does to a picture, and the names of its classes, come along: classifiers,
    segmenters, detectors and video models alike.

    Raises: ModelError where there is no such model, or its weights cannot be had or do not fit.

    >>> build("a/b", None, False)
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: 'a/b' is no plain name of torchvision's registry, such as resnet50 or \
resnet50.IMAGENET1K_V1.
    """
    if not _PLAIN.fullmatch(name):
        raise ModelError(
            f"'{printable(name[:80])}' is no plain name of torchvision's registry, such as resnet50 or "
            "resnet50.IMAGENET1K_V1."
        )
    held = None if weights in (None, "random") else open_weights(str(weights))
    models = _torchvision()
    known, _, tag = name.partition(".")
    _check_name(models, known)
    chosen = _chosen(models, known, tag)
    if held:
        net, notes = _from_file(models, known, chosen, held, partial)
    elif weights == "random":
        net, notes = _blank(models, known), ("random initialisation: the net has learnt nothing",)
    else:
        net, notes = _pretrained(models, known, chosen)
    labels, guess = _labels(chosen, net, guessed=held is not None)
    prepare, said = _preprocess(chosen, guessed=held is not None)
    return Model(net, prepare, name=f"torchvision/{name}", labels=labels, notes=(*notes, *guess, *said))


def names() -> Iterable[str]:
    """The names of torchvision's registry. Raises: ModelError where it cannot be imported."""
    return [str(name) for name in _torchvision().list_models()]


def _torchvision() -> ModuleType:
    advice = "it does not fit the installed torch; install the two versions that belong together"
    with imported("torchvision", "torchvision/…", "torchvision", advice):
        import torchvision.models
    found: ModuleType = torchvision.models
    return found


def _check_name(models: ModuleType, known: str) -> None:
    if known not in models.list_models():
        raise ModelError(f"torchvision has no model '{known}'.{did_you_mean(known, models.list_models())}")


def _chosen(models: ModuleType, known: str, tag: str) -> Any:
    """The weights named, or the ones that torchvision takes by itself; None where it has none."""
    choices = {w.name: w for w in models.get_model_weights(known)}
    if not tag:
        return getattr(models.get_model_weights(known), "DEFAULT", None)
    if tag not in choices:
        told = did_you_mean(tag, choices) or " It has none at all."
        raise ModelError(f"torchvision has no weights '{known}.{tag}'.{told}")
    return choices[tag]


# ------------------------------------------------------------------------------------------------------ the weights


def _pretrained(models: ModuleType, known: str, chosen: Any) -> tuple[nn.Module, tuple[str, ...]]:
    if chosen is None:
        raise ModelError(
            f"torchvision has no pretrained weights for '{known}': pass weights=FILE, or weights='random'."
        )
    try:
        net: nn.Module = models.get_model(known, weights=chosen)
    except Exception as fault:  # the network has dozens of errors of its own
        reason = " ".join(str(fault).split())[:160]
        raise ModelError(
            f"the weights of '{known}' could not be fetched ({type(fault).__name__}: {reason}): the network is needed "
            "once, then they are kept; or pass weights=FILE."
        ) from fault
    return net, (f"pretrained weights torchvision {chosen.name}",)


def _blank(models: ModuleType, known: str, **asked: Any) -> nn.Module:
    """The net alone: without its backbone's weights, too, which torchvision would fetch."""
    takes = inspect.signature(models.get_model_builder(known)).parameters
    backbone = {"weights_backbone": None} if "weights_backbone" in takes else {}
    net: nn.Module = models.get_model(known, weights=None, **backbone, **asked)
    return net


def _from_file(
    models: ModuleType, known: str, chosen: Any, held: Weights, partial: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    """The net with as many classes as the file has, so that fine-tuned heads load."""
    net = _blank(models, known)
    own = {bare(k): v.shape for k, v in net.state_dict().items() if v.dim() > 1}
    head, count = list(own)[-1], len(_categories(chosen))
    rows = next((v.shape[0] for k, v in held.state.items() if bare(k) == head), count)
    if own[head][0] == count != rows:
        net = _blank(models, known, num_classes=rows)
    changed = _as_pretrained(net)
    return net, (*held.notes, *fit(net, held.state, partial), *changed)


def _as_pretrained(net: nn.Module) -> tuple[str, ...]:
    """Inception and GoogLeNet change the input's scale before its first layer where they have torchvision's weights."""
    if getattr(net, "transform_input", True):
        return ()
    net.transform_input = True  # type: ignore[assignment]
    return ("transform_input is on, as with torchvision's own weights",)


# ---------------------------------------------------------------------------------------------- pictures and labels


def _categories(chosen: Any) -> list[str]:
    return list(chosen.meta.get("categories") or ()) if chosen is not None else []


def _preprocess(chosen: Any, guessed: bool) -> tuple[Preprocess, tuple[str, ...]]:
    """What the transform that comes with the weights does to a picture."""
    if chosen is None:
        return IMAGENET, ("pictures prepared as for ImageNet: torchvision says nothing else",)
    note = (f"pictures prepared as for torchvision's {chosen.name}",) if guessed else ()
    return measured(chosen.transforms()), note


def _labels(chosen: Any, net: nn.Module, guessed: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = _categories(chosen)
    heads = [v.shape[0] for v in net.state_dict().values() if v.dim() > 1][-1:]
    if guessed and heads != [len(found)]:
        return (), ()
    return tuple(found), (f"{len(found):,} classes: taken to be those of {chosen.name}",) if guessed else ()
