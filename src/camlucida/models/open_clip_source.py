"""Models of the open_clip library, by its names, as classifiers whose classes are texts."""

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from camlucida.errors import ModelError, did_you_mean
from camlucida.files import printable
from camlucida.models import Model
from camlucida.models.guests import imported
from camlucida.models.measure import measured
from camlucida.models.weights import fit, open_weights
from camlucida.models.zero_shot import check_prompts, said, too_long, zero_shot

FORM = "open_clip/NAME"
PROMPTS = True


def build(name: str, weights: str | None, partial: bool, prompts: Sequence[str]) -> Model:
    """The model called ``name`` in open_clip, such as ``ViT-B-32.openai`` with its tag of weights, by ``prompts``.

    Raises: ModelError where there is no such model or tag, its weights cannot be had, or no prompts are given.

    >>> build("ViT-B-32.openai", None, False, ())
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: the classes of a model with a tower for texts are texts: say load(…, \
prompts=['a photo of a dog', 'a photo of a cat']), or --prompt 'a dog' --prompt 'a cat'.
    """
    check_prompts(prompts)
    library = _library()
    kind, tag = _kind(library, name, weights)
    held = None if weights in (None, "random") else open_weights(str(weights))
    net, transform = _made(library, kind, tag if weights is None else None)
    notes = (f"pretrained weights of open_clip, {name}",) if weights is None else _fitted(net, held, partial)
    how = measured(transform)
    x = torch.randn(1, how.channels, *how.size, generator=torch.Generator().manual_seed(0))
    made = zero_shot(net, (x, _tokens(library, kind, prompts)))
    return Model(made, how, name=f"open_clip/{name}", labels=prompts, notes=(*notes, *said(made)))


def names() -> Iterable[str]:
    """Every architecture with each of its tags of weights. Raises: ModelError where the library is missing."""
    return [f"{kind}.{tag}" for kind, tag in _library().list_pretrained()]


def _library() -> ModuleType:
    with imported("open_clip", "open_clip/…", "open_clip", "install versions that belong together"):
        import open_clip
    return open_clip  # type: ignore[no-any-return]


def _kind(library: ModuleType, name: str, weights: str | None) -> tuple[str, str | None]:
    """The architecture and its tag of weights. Raises: ModelError where open_clip has none of that name."""
    known = library.list_models()
    kind, _, tag = (name, "", "") if name in known else name.rpartition(".")
    if kind not in known:
        raise ModelError(f"open_clip has no model '{printable(name[:80])}'.{did_you_mean(kind or name, known)}")
    tags = library.list_pretrained_tags_by_model(kind)
    if tag and tag not in tags:
        raise ModelError(f"open_clip has no weights '{printable(tag[:80])}' of {kind}.{did_you_mean(tag, tags)}")
    if weights is None and not tag:
        told = f"one of open_clip/{kind}.{', .'.join(tags)}; or " if tags else ""
        raise ModelError(f"open_clip/{kind} names no weights: say {told}weights=FILE, or weights='random'.")
    return kind, tag or None


def _made(library: ModuleType, kind: str, tag: str | None) -> tuple[nn.Module, Any]:
    try:
        quick = bool((library.get_pretrained_cfg(kind, tag) if tag else {}).get("quick_gelu"))  # else only warned of
        net, _, transform = library.create_model_and_transforms(
            kind, pretrained=tag, pretrained_text=False, force_quick_gelu=quick
        )
    except Exception as fault:  # the hub's client has dozens of errors, and the network its own
        reason = " ".join(str(fault).split())[:200]
        raise ModelError(f"open_clip cannot make '{kind}' ({type(fault).__name__}: {reason}).") from fault
    return net, transform


def _fitted(net: nn.Module, held: Any, partial: bool) -> tuple[str, ...]:
    if held is None:
        return ("random initialisation: the net has learnt nothing",)
    return (*held.notes, *fit(net, held.state, partial))


def _tokens(library: ModuleType, kind: str, prompts: Sequence[str]) -> Tensor:
    try:
        tokenizer = library.get_tokenizer(kind)
        found: Tensor = tokenizer(list(prompts))
        length = found.shape[1]
        wide: Tensor = tokenizer(list(prompts), context_length=2 * length)
    except Exception as fault:  # one that is kept on a hub
        why = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
        raise ModelError(f"the tokenizer of open_clip/{kind} cannot be had ({why}).") from fault
    # a prompt that does not fit would be cut without a word: with more room it ends elsewhere, or goes on
    cut = (wide[:, :length] != found).any(1) | (wide[:, length:] != wide[:, -1:]).any(1)
    if cut.any():
        raise too_long(prompts[int(cut.int().argmax())], length)
    return found
