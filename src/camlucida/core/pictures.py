"""What the maps of an explanation lie on: pictures, clips, volumes, or the tensor that the model saw."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from camlucida import maps
from camlucida.errors import InputError
from camlucida.frame import Frame

if TYPE_CHECKING:
    from PIL.Image import Image

    from camlucida.clips import Clip
    from camlucida.volumes import Volume


@dataclass(frozen=True)
class Pictures:
    """What the maps lie on: the tensor the model saw or the pictures it came from, with names and geometry.

    A clip or volume that came from a file is kept among ``originals``, and its maps lie on its own pixels or voxels.
    """

    space: tuple[int, ...]
    names: tuple[str, ...]
    frames: tuple[Frame, ...] = ()
    images: "tuple[Image, ...]" = ()
    tensor: Tensor | None = None
    notes: tuple[str, ...] = ()  # what was done to each picture on opening; "" for nothing
    originals: "tuple[Clip | Volume, ...]" = ()

    def __getitem__(self, i: slice) -> "Pictures":
        tensor = None if self.tensor is None else self.tensor[i]
        kept = {of: getattr(self, of)[i] for of in ("names", "frames", "images", "notes", "originals")}
        return replace(self, tensor=tensor, **kept)

    def image(self, i: int) -> "Image":
        """Picture ``i``; one that came as a tensor is shown with its own range stretched to black and white.

        Raises: InputError where the input is no picture.
        """
        from PIL import Image

        if self.images:
            return self.images[i]
        if self.tensor is None or len(self.space) != 2:
            raise InputError(f"an input with {len(self.space)} axes of space is no picture: use heatmap() or map.")
        x = self.tensor[i].detach().float().cpu().nan_to_num()
        x = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
        x = (x - x.min()) / (x.max() - x.min()).clamp(min=torch.finfo(torch.float32).tiny)
        return Image.fromarray((x * 255).round().byte().movedim(0, -1).contiguous().numpy())

    def lay(self, values: Float[Tensor, "*space"], i: int) -> tuple[Float[Tensor, "*full"], Bool[Tensor, "*full"]]:
        """A map on the own places of picture ``i``, and which of them the model saw; unseen ones are zero.

        Of a clip each frame is laid by itself; a volume gets back the order of its axes in the file.

        >>> heat, seen = Pictures((4,), ("signal",)).lay(torch.tensor([0.0, 1.0]), 0)
        >>> heat.tolist(), seen.tolist()
        ([0.0, 0.25, 0.75, 1.0], [True, True, True, True])
        """
        if self.frames and len(self.space) == 2:
            return maps.lay(values, self.frames[i])
        if self.frames:
            each = maps.resize(values[None], (self.space[0], *values.shape[1:]))[0]
            laid = [maps.lay(value, self.frames[i]) for value in each]
            return torch.stack([heat for heat, _ in laid]), torch.stack([seen for _, seen in laid])
        heat = self._volume(values, i) if self.originals else maps.resize(values[None], self.space)[0]
        return heat, torch.ones(heat.shape, dtype=torch.bool)

    def turned(self, values: Float[Tensor, "*full"], i: int) -> Float[Tensor, "*space"]:
        """Values on the own places of picture ``i`` with its axes as the model has them; a volume's file may differ."""
        if self.frames or not self.originals:
            return values
        volume: Volume = self.originals[i]  # type: ignore[assignment]
        return values.permute(*volume.order).flip(volume.flips)

    def _volume(self, values: Float[Tensor, "x y z"], i: int) -> Float[Tensor, "i j k"]:
        volume: Volume = self.originals[i]  # type: ignore[assignment]
        turned = maps.resize(values[None], [volume.size[axis] for axis in volume.order])[0]
        return turned.flip(volume.flips).permute(*(volume.order.index(axis) for axis in range(3)))
