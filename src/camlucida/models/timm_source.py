"""Models of the timm library, by its registry's names: ``timm/resnet50.a1_in1k``."""

import math
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from camlucida.errors import InputError, ModelError, did_you_mean
from camlucida.files import printable
from camlucida.frame import Preprocess
from camlucida.models import Model
from camlucida.models.guests import imported
from camlucida.models.weights import Weights, bare, fit, open_weights

FORM = "timm/NAME"

_PLAIN = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")
_FITS = {"center": "crop", "squash": "squash", "border": "letterbox"}


def build(name: str, weights: str | None, partial: bool) -> Model:
    """The model called ``name`` in timm's registry, with pretrained weights, random ones, or those of a file.

    Raises: ModelError where there is no such model, or its weights cannot be had or do not fit.

    >>> build("hf-hub:someone/something", None, False)
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: 'hf-hub:someone/something' is no plain name of timm's registry, such as resnet50 or \
vit_base_patch16_224.augreg_in21k; hub addresses, folders and paths are not taken.
    """
    if not _PLAIN.fullmatch(name):
        raise ModelError(
            f"'{printable(name[:80])}' is no plain name of timm's registry, such as resnet50 or "
            "vit_base_patch16_224.augreg_in21k; hub addresses, folders and paths are not taken."
        )
    held = None if weights in (None, "random") else open_weights(str(weights))
    timm = _timm()
    _check_name(timm, name)
    if held:
        net, notes = _from_file(timm, name, held, partial)
    elif weights == "random":
        net, notes = timm.create_model(name), ("random initialisation: the net has learnt nothing",)
    else:
        net, notes = _pretrained(timm, name)
    labels, guess = _labels(timm, net, guessed=held is not None)
    return Model(net, _preprocess(timm, net), name=f"timm/{name}", labels=labels, notes=(*notes, *guess))


def names() -> Iterable[str]:
    """The names of timm's registry. Raises: ModelError where it cannot be imported."""
    return [str(name) for name in _timm().list_models()]


def _timm() -> ModuleType:
    advice = "the installed torchvision does not fit the installed torch; install the two versions that belong together"
    with imported("timm", "timm/…", "timm", advice):
        import timm
        import timm.data
    return timm


def _check_name(timm: ModuleType, name: str) -> None:
    known = name.partition(".")[0]
    if not timm.is_model(known):
        raise ModelError(f"timm has no model '{known}'.{did_you_mean(known, timm.list_models())}")
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        tags = timm.list_models(f"{known}.*", pretrained=True)
        told = did_you_mean(name, tags) or " It has none at all."
        raise ModelError(f"timm has no weights '{name}'.{told}") from None


# ------------------------------------------------------------------------------------------------------ the weights


def _pretrained(timm: ModuleType, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ModelError(f"timm has no pretrained weights for '{name}': pass weights=FILE, or weights='random'.")
    try:
        net = timm.create_model(name, pretrained=True)
    except Exception as fault:  # the hub's client has dozens of errors, and the network its own
        reason = " ".join(str(fault).split())[:160]
        raise ModelError(
            f"the weights of '{name}' could not be fetched ({type(fault).__name__}: {reason}): the network is needed "
            "once, then they are kept; or pass weights=FILE."
        ) from fault
    origin = config.hf_hub_id or config.url or "timm"
    return net, (f"pretrained weights {origin}{f', tag {config.tag}' if config.tag else ''}",)


def _from_file(timm: ModuleType, name: str, held: Weights, partial: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """The net with as many classes and input channels as the file has, so that fine-tuned heads load."""
    config = timm.get_pretrained_cfg(name)
    asked: dict[str, Any] = {}
    if (classes := _rows(held.state, _first(config.classifier), 0)) is not None:
        asked["num_classes"] = classes
    if (channels := _rows(held.state, _first(config.first_conv), 1)) not in (None, 3):
        asked["in_chans"] = channels
    try:
        net = timm.create_model(name, **asked)
    except Exception as fault:
        told = ", ".join(f"{k}={v}" for k, v in asked.items())
        raise ModelError(f"timm cannot make '{name}' with {told}: {' '.join(str(fault).split())[:200]}") from fault
    return net, (*held.notes, *fit(net, held.state, partial))


def _first(names: Any) -> str:
    """A model may have several heads (a distilled one beside its own): the first decides."""
    return str(names[0]) if isinstance(names, tuple | list) and names else str(names)


def _rows(state: Mapping[str, Tensor], module: str, axis: int) -> int | None:
    found = next((v for k, v in state.items() if bare(k) == f"{bare(module)}.weight"), None)
    return found.shape[axis] if found is not None and found.dim() > 1 else None


# ---------------------------------------------------------------------------------------------- pictures and labels


def _preprocess(timm: ModuleType, net: nn.Module) -> Preprocess:
    """What timm's own evaluation does to a picture."""
    config = timm.data.resolve_model_data_config(net)
    _, height, width = config["input_size"]
    entry = getattr(net, "pretrained_cfg", {}).get("first_conv")
    channels = _rows(net.state_dict(), _first(entry), 1) or config["input_size"][0]
    side = min(height, width)
    share = side / math.floor(side / config["crop_pct"])  # timm rounds the resized side down
    try:
        return Preprocess(
            (height, width),
            mean=_spread(config["mean"], channels),
            std=_spread(config["std"], channels),
            crop=share,
            fit=_FITS.get(config["crop_mode"], "crop"),  # type: ignore[arg-type]
            interpolation=config["interpolation"],
        )
    except InputError as fault:
        raise ModelError(f"pictures cannot be made ready for this model ({fault}): build it yourself.") from fault


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics for as many channels as the net takes; grey is the mean of the colours."""
    return (sum(values) / len(values),) if channels == 1 else tuple(values) if len(values) == channels else values * 0


def _labels(timm: ModuleType, net: nn.Module, guessed: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    subset = timm.data.infer_imagenet_subset(net) if getattr(net, "num_classes", 0) else None
    if subset is None:
        return (), ()
    names = timm.data.ImageNetInfo(subset)
    count = int(net.num_classes)  # type: ignore[arg-type]
    note = (f"{count:,} classes: taken to be those of {subset}",) if guessed else ()
    return tuple(names.index_to_description(i) for i in range(count)), note
