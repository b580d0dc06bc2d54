"""`visualize_cam` and `Normalize`: tensors in, tensors out, as in the original."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida import view
from camlucida.errors import InputError

Colours = Float[Tensor, "*b 3 h w"]

_SLACK = 0.25  # what smooth resizing may overshoot [0, 1] by; a normalised picture or one of 0 to 255 goes far beyond


def visualize_cam(mask: Tensor, img: Tensor, alpha: float = 1.0) -> tuple[Colours, Colours]:
    """``heatmap, result``: the mask in the colours of jet, and ``(alpha · heatmap + img) / max``, RGB in [0, 1].

    ``mask``: ``1 1 h w`` or ``h w``; ``img``: ``1 3 h w`` or ``3 h w``; both floating, in [0, 1]. Both results are
    ``3 h w`` on the CPU; for a batch, ``b 1 h w`` with ``b 3 h w``, they are ``b 3 h w``, each by its own maximum.

    Raises: InputError where the shapes do not fit or the values are not in [0, 1].

    >>> heatmap, result = visualize_cam(torch.rand(1, 1, 32, 48), torch.rand(1, 3, 32, 48))
    >>> heatmap.shape, result.shape, result.max().item()
    (torch.Size([3, 32, 48]), torch.Size([3, 32, 48]), 1.0)
    """
    space = mask.shape[-2:]
    if len(space) < 2 or img.shape[-3:] != (3, *space) or not 0 < img.numel() == 3 * mask.numel():
        shapes = f"a mask {tuple(mask.shape)} and an img {tuple(img.shape)}"
        raise InputError(f"visualize_cam takes a mask (b, 1, H, W) and an img (b, 3, H, W) of one size; got {shapes}.")
    heats, photos = _shown(mask, "mask").reshape(-1, *space), _shown(img, "img").reshape(-1, 3, *space)
    painted = torch.stack([torch.from_numpy(view.paint(heat.numpy(), "jet")) for heat in heats])
    heatmap = painted.movedim(-1, 1).float() / 255
    mixed = alpha * heatmap + photos
    result = mixed / mixed.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(mixed.dtype).tiny)
    return (heatmap, result) if len(heats) > 1 else (heatmap[0], result[0])


def _shown(values: Tensor, name: str) -> Tensor:
    values = values.detach().float().cpu()
    low, high = float(values.amin()), float(values.amax())
    if not (-_SLACK <= low and high <= 1 + _SLACK):
        raise InputError(f"{name} is shown as it is, in [0, 1], but its values go from {low:.3g} to {high:.3g}.")
    return values.clamp(0, 1)


@final
@dataclass(frozen=True)
class Normalize:
    """``(x − mean) / std`` channel by channel, and back.

    >>> normalize = Normalize(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    >>> x = normalize(torch.ones(1, 3, 2, 2))
    >>> x[0, 0, 0, 0].item(), normalize.undo(x)[0, 0, 0, 0].item()
    (2.0, 1.0)
    """

    mean: Sequence[float]
    std: Sequence[float]

    def do(self, tensor: Tensor) -> Tensor:
        """A new tensor ``(x − mean) / std``, as ``x`` floating, ``b c h w`` or ``c h w``, else InputError."""
        mean, std = self._each_channel(tensor)
        return (tensor - mean) / std

    __call__ = do

    def undo(self, tensor: Tensor) -> Tensor:
        """A new tensor ``x · std + mean``, as ``x`` floating, ``b c h w`` or ``c h w``, else InputError."""
        mean, std = self._each_channel(tensor)
        return tensor * std + mean

    def _each_channel(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        c = len(self.mean)
        if tensor.dim() not in (3, 4) or tensor.shape[-3] != c or len(self.std) != c or not tensor.is_floating_point():
            given = f"{tensor.dtype} of {tuple(tensor.shape)}"
            raise InputError(f"{self} takes floats (b, {c}, H, W) or ({c}, H, W), a std for each mean; got {given}.")
        return tensor.new_tensor(self.mean)[:, None, None], tensor.new_tensor(self.std)[:, None, None]
