"""Maps inside a training loop: differentiable, so that a loss may ask where the evidence lies."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from camlucida.core import settle
from camlucida.core import targets as targets_
from camlucida.core.capture import Inputs, call, noted
from camlucida.core.gradients import full, steep
from camlucida.core.layouts import infer
from camlucida.core.pictures import Pictures
from camlucida.core.question import Question
from camlucida.core.scope import eager, named, unwrap
from camlucida.errors import InputError, LayerError, MethodError
from camlucida.registry import Method, get
from camlucida.types import Loaded, Map, Target


def supervised(
    model: nn.Module,
    x: torch.Tensor,
    *,
    target: Any = targets_.top1,
    method: str | Method = "gradcam",
    layer: Any = None,
) -> tuple[Any, Map]:
    """The model's own output, and a map that gradients flow through, to every parameter before and after the layer.

    One forward pass in the mode the model is in; ``M = method(A, ∂y/∂A)`` with its graph kept, ``b *space``, raw and
    signed as in `explain`. For losses on where the evidence lies. Costs a second backward pass of the tail.

    Compiled models run as plain code here; a frozen part before the layer stays as it is.

    Raises: MethodError for a method that asks the model again; InputError for anything but a
    tensor; LayerError, TargetError as `explain`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> logits, maps = supervised(net, torch.randn(2, 3, 16, 16), target=targets_.classes([1, 7]))
    >>> (nn.functional.cross_entropy(logits, torch.tensor([1, 7])) + maps.relu().mean()).backward()
    """
    net, labels = (model.net, tuple(model.labels)) if isinstance(model, Loaded) else (model, ())
    how, asked = get(method), targets_.as_target(target, labels)
    if how.needs not in ("gradient", "activation") or not how.differentiable:
        why = f"it needs {how.needs}, not one gradient" if how.differentiable else "a loss could make weights NaN"
        raise MethodError(f"{how.title} is not differentiable here: {why}. method='gradcam' is.")
    if not isinstance(x, torch.Tensor):
        raise InputError(f"supervised() takes one batch of inputs as a tensor; got {type(x).__name__}.")
    asked = _told(asked, x, settle.Subjects(Pictures((), ()), labels, unwrap(net)))
    ask = Question(net, Inputs((x.detach(),)), [asked], [how])
    if how.at == "input" and layer is None:
        raise MethodError(f"{how.title} works at the pixels, and supervised() at a layer: name one with layer=….")
    name, layout = ask.place(layer)
    with torch.enable_grad(), eager(net), noted(net, [name]) as found:
        output = call(net, Inputs((x,)))
        if name not in found:
            raise LayerError(f"layer {name!r} did not run in this forward pass, or gave no tensor with space.")
        act = found[name]
        layout = layout or infer(act.shape, tuple(x.shape[2:]), named(unwrap(net)).get(name))
        grad = None
        if how.needs != "activation":
            grad = steep(targets_.score(asked, output, len(x)).sum(), act)
            if grad is None:
                raise LayerError(f"the score does not depend on layer {name!r}.")
        with torch.autocast(x.device.type, enabled=False):  # maps are summed in full precision
            return output, how(*(layout(full(t)) for t in (act, grad) if t is not None))


def _told(asked: Target, x: torch.Tensor, subjects: settle.Subjects) -> Target:
    """The target knowing the pictures, where it is one of a region or box."""
    seen = Pictures(tuple(x.shape[2:]), tuple(f"picture {i}" for i in range(len(x))))
    return settle.told([asked], replace(subjects, pictures=seen))[0]
