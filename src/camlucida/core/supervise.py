"""Maps inside a training loop: differentiable, so that a loss may ask where the evidence lies."""

from typing import Any

import torch
from torch import nn

from camlucida.core import layers as layers_
from camlucida.core import targets as targets_
from camlucida.core.capture import Inputs, noted
from camlucida.core.gradients import full, steep
from camlucida.core.layouts import infer
from camlucida.core.scope import named, unwrap
from camlucida.errors import LayerError, MethodError
from camlucida.registry import Method, get
from camlucida.types import Layout, Loaded, Map


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

    Raises: MethodError for a method that asks the model again; LayerError, TargetError as `explain`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> logits, maps = supervised(net, torch.randn(2, 3, 16, 16), target=targets_.classes([1, 7]))
    >>> (nn.functional.cross_entropy(logits, torch.tensor([1, 7])) + maps.relu().mean()).backward()
    """
    net, labels = (model.net, tuple(model.labels)) if isinstance(model, Loaded) else (model, ())
    how, asked = get(method), targets_.as_target(target, labels)
    if how.needs not in ("gradient", "activation"):
        raise MethodError(f"{how.title} is not differentiable here: it needs {how.needs}, not one gradient.")
    name, layout = _place(net, x, layer)
    with torch.enable_grad(), noted(net, [name]) as found:
        output = net(x)
        if name not in found:
            raise LayerError(f"layer {name!r} did not run in this forward pass, or gave no tensor with space.")
        act = found[name]
        layout = layout or infer(act.shape, tuple(x.shape[2:]), named(unwrap(net)).get(name))
        if how.needs == "activation":
            return output, how(layout(full(act)))
        score = targets_.score(asked, output, len(x)).sum()
        grad = steep(score, act)
    if grad is None:
        raise LayerError(f"the score does not depend on layer {name!r}.")
    return output, how(layout(full(act)), layout(full(grad)))


def _place(net: nn.Module, x: torch.Tensor, layer: Any) -> tuple[str, Layout | None]:
    if isinstance(layer, tuple):
        return layers_.resolve(net, layer[0]), layer[1]
    if layer is not None and not isinstance(layer, int):
        return layers_.resolve(net, layer), None
    seen = layers_.survey(net, Inputs((x.detach(),)))
    place = seen.choice if layer is None else seen.numbered(layer)
    return place.name, place.layout
