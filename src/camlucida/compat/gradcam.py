"""`GradCAM` and `GradCAMpp` with the original's signatures; `camlucida.explain` does the work."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from camlucida.core.explain import explain
from camlucida.core.explanation import Explanation
from camlucida.core.layers import resolve
from camlucida.core.scope import untouched
from camlucida.core.targets import classes, logits, top1
from camlucida.errors import InputError
from camlucida.types import Loaded, Map, Target

Mask = Float[Tensor, "b 1 h w"]
Logits = Float[Tensor, "b k"]


class Cam(ABC):
    """A model and one of its layers, to be called with pictures. No call leaves anything here: threads may share it.

    ``model_dict``: ``arch`` and ``layer_name``, if one likes ``input_size``, and ``type`` or ``model_type``, which
    nothing depends on any more. ``verbose`` prints the size of the map, once, where ``input_size`` is given.
    Raises: InputError where a key is missing; LayerError where the layer is.
    """

    def __init__(self, model_dict: Mapping[str, Any], verbose: bool = False) -> None:
        missing = sorted({"arch", "layer_name"} - model_dict.keys())
        if missing:
            raise InputError(f"the model dictionary has no {missing[0]!r}: dict(arch=model, layer_name='features_29').")
        arch = model_dict["arch"]
        self.model_arch: nn.Module = arch.net if isinstance(arch, Loaded) else arch
        self.layer = resolve(self.model_arch, model_dict["layer_name"])
        if verbose and "input_size" in model_dict:
            # Noise, as of zeros no gradient might come back; drawn without the global generator.
            noise = torch.rand(1, 3, *model_dict["input_size"], generator=torch.Generator().manual_seed(0))
            like = next((p for p in self.model_arch.parameters() if p.is_floating_point()), noise)
            print("saliency_map size :", self._explain(noise.to(like), top1).map.shape[1:])

    @abstractmethod
    def _explain(self, input: Tensor, target: Target) -> Explanation: ...

    def forward(self, input: Tensor, class_idx: Any = None, retain_graph: bool = False) -> tuple[Mask, Logits]:
        """``mask, logit``: where the evidence lies, ``b 1 h w`` in [0, 1], and what the model answers, ``b k``.

        ``input``: ``b c h w``, floating. ``class_idx``: each picture's own best class when None, one class for all,
        or a sequence with one for each. ``logit`` has a graph with ``retain_graph`` only, from a pass of its own in
        evaluation mode like the map. Raises: InputError, TargetError, LayerError, as `explain`.
        """
        if input.dim() != 4:
            raise InputError(f"a batch of pictures has the shape (b, 3, H, W); got {tuple(input.shape)}.")
        target = top1 if class_idx is None else classes(class_idx)
        found = self._explain(input, target)
        mask = _mask(found.map, tuple(input.shape[2:]))
        if found.logits is not None and not retain_graph:
            return mask, found.logits
        with untouched(self.model_arch, input.device), torch.enable_grad():
            return mask, logits(self.model_arch(input.clone()))  # a clone: what inference mode made joins no graph

    __call__ = forward


@final
class GradCAM(Cam):
    """Grad-CAM, called as in the original. [selvaraju2017]

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> gradcam = GradCAM(dict(type="vgg", arch=net, layer_name="1", input_size=(16, 16)), verbose=True)
    saliency_map size : torch.Size([14, 14])
    >>> mask, logit = gradcam(torch.rand(2, 3, 32, 32), class_idx=7)
    >>> mask.shape, logit.shape
    (torch.Size([2, 1, 32, 32]), torch.Size([2, 10]))
    """

    def _explain(self, input: Tensor, target: Target) -> Explanation:
        return explain(self.model_arch, input, target=target, method="gradcam", layer=self.layer)


@final
class GradCAMpp(Cam):
    """Grad-CAM++, called as in the original and otherwise as `GradCAM`, by the paper's formula. [chattopadhyay2018]"""

    def _explain(self, input: Tensor, target: Target) -> Explanation:
        return explain(self.model_arch, input, target=target, method="gradcampp", layer=self.layer)


def _mask(raw: Map, size: tuple[int, ...]) -> Mask:
    """The original's steps, each picture on its own: ReLU, upsample, ``(M − min)/(max − min)``; zeros where blank."""
    heat = interpolate(raw.relu()[:, None], size, mode="bilinear", align_corners=False)
    low, high = heat.amin((2, 3), keepdim=True), heat.amax((2, 3), keepdim=True)
    # False too for NaN and infinity, and where a flat map's places differ by rounding only.
    shows = high - low > 64 * torch.finfo(heat.dtype).eps * high
    return torch.where(shows, (heat - low) / (high - low), 0)
