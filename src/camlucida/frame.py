"""How a picture becomes the model's tensor (`Preprocess`), and the rectangle that the tensor stands for (`Frame`)."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camlucida.errors import InputError
from camlucida.pixels import bands_of, to_rgb

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the upright picture."""

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
}  # fmt: skip
_LARGEST_STEP = 16_000_000  # pixels of a resized picture before it is cut; beyond, only what survives is computed


# ----------------------------------------------------------------------------------------------------------- geometry
@dataclass(frozen=True)
class Frame:
    """Which rectangle of a picture a tensor covers: ``box``, in pixels of the upright ``width`` × ``height`` picture.

    The box may reach beyond the picture (letterbox) or leave a margin out (centre crop).

    >>> frame = Frame(640, 480, (80.0, 0.0, 560.0, 480.0))
    >>> frame.to_picture(0.5, 1.0), frame.to_tensor(80.0, 240.0), frame.covers_all
    ((320.0, 480.0), (0.0, 0.5), False)
    """

    width: int
    height: int
    box: Box

    @classmethod
    def whole(cls, width: int, height: int) -> "Frame":
        """The frame of a tensor that shows the whole picture and nothing else."""
        return cls(width, height, (0.0, 0.0, float(width), float(height)))

    @property
    def covers_all(self) -> bool:
        """Whether every pixel of the picture lies inside the box."""
        left, top, right, bottom = self.box
        return left <= 0 and top <= 0 and right >= self.width and bottom >= self.height

    def to_picture(self, u: float, v: float) -> tuple[float, float]:
        """Position in the tensor, as fractions (0 = left or top edge, 1 = right or bottom), → pixels of the picture."""
        left, top, right, bottom = self.box
        return left + u * (right - left), top + v * (bottom - top)

    def to_tensor(self, x: float, y: float) -> tuple[float, float]:
        """Position in the picture, in pixels, → fractions of the tensor; the inverse of `to_picture`."""
        left, top, right, bottom = self.box
        return (x - left) / (right - left), (y - top) / (bottom - top)


@dataclass(frozen=True)
class _Plan:
    """Resize ``source`` to ``resized``, then take the window of ``out`` pixels that begins at ``start``; all (x, y)."""

    source: tuple[int, int]
    resized: tuple[int, int]
    start: tuple[int, int]
    out: tuple[int, int]

    @property
    def box(self) -> Box:
        (w, h), (rw, rh), (x, y) = self.source, self.resized, self.start
        # multiply first: exact in integers, so that an uncut side ends at w itself and not one rounding below
        return x * w / rw, y * h / rh, (x + self.out[0]) * w / rw, (y + self.out[1]) * h / rh


# ------------------------------------------------------------------------------------------------------------- tensor
@dataclass(frozen=True)
class Preprocess:
    """Picture → (x − mean) / std in ``size`` = (h, w), one greyscale channel or three, and the `Frame` it covers.

    As many means and standard deviations as an array has bands make multispectral tensors of it (`bands`).

    ``fit="crop"``: resize so that ``size / crop`` is just covered, aspect kept, then cut ``size`` from the centre; for
    a square this is bit for bit torchvision's ``Resize(round(size / crop)), CenterCrop(size), ToTensor, Normalize``.
    ``"squash"``: resize to ``size / crop`` without keeping the aspect, then cut. ``"letterbox"``: the whole picture,
    aspect kept, centred on the mean colour (0 after normalising); ``crop`` is not used.
    No picture is ever resized beyond 16 Mpx on the way: a thin strip costs no more than any other.

    Raises:
        InputError: a setting makes no sense.

    >>> x, frame = IMAGENET(Image.new("RGB", (500, 375)))
    >>> tuple(x.shape), [round(side, 1) for side in frame.box]
    ((3, 224, 224), [85.0, 23.4, 413.5, 351.6])
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 0.875
    fit: Literal["crop", "squash", "letterbox"] = "crop"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"size is (height, width), both at least 1; got {self.size}")
        if len(self.mean) != len(self.std) or not self.std or min(self.std) <= 0:
            raise InputError(
                f"mean and std need one number a channel each, std above 0; got {self.mean} and {self.std}"
            )
        if not 0 < self.crop <= 1:
            raise InputError(f"crop is the share of a side that is kept, above 0 and at most 1; got {self.crop}")
        for value, known in ((self.fit, _FITS), (self.interpolation, _RESAMPLE)):
            if value not in known:
                raise InputError(f"{value!r} is not one of {', '.join(known)}")

    @property
    def channels(self) -> int:
        """Channels of the tensor: 1 (greyscale), 3 (RGB), or as many as there are bands."""
        return len(self.mean)

    def __call__(self, picture: Image.Image) -> tuple[Float[Tensor, "c h w"], Frame]:
        """The normalised tensor of an upright picture, and the rectangle of the picture that it covers.

        Raises: InputError where there are statistics for other than 1 or 3 channels.
        """
        if self.channels not in (1, 3):
            raise InputError(
                f"a picture has 1 or 3 channels, and preprocessing has the mean and std of {self.channels}: hand over "
                f"an array (height, width, {self.channels})."
            )
        plan = _FITS[self.fit](self, *picture.size)
        rgb = picture if picture.mode in ("RGB", "L") else to_rgb(picture)[0]
        pixels = _resample(rgb.convert("L" if self.channels == 1 else "RGB"), plan, _RESAMPLE[self.interpolation])
        x = torch.from_numpy(np.array(pixels)).reshape(pixels.height, pixels.width, self.channels)
        return self._normalised(x.permute(2, 0, 1).contiguous().float().div_(255), plan)

    def bands(self, array: NDArray[Any]) -> tuple[Float[Tensor, "c h w"], Frame]:
        """The same for an array ``height width c`` of as many bands as there are means: integers over their largest
        value, floats as they are.

        Raises:
            InputError: another number of bands.
            PictureError: no such array.

        >>> how = Preprocess((4, 4), mean=(0.5,) * 13, std=(0.25,) * 13, crop=1.0)
        >>> how.bands(np.ones((8, 8, 13)))[0].shape
        torch.Size([13, 4, 4])
        """
        if array.ndim != 3 or array.shape[2] != self.channels:
            first = array.ndim == 3 and array.shape[0] == self.channels
            hint = ": bands come last, np.moveaxis(array, 0, -1)" if first else ""
            raise InputError(
                f"preprocessing has the mean and std of {self.channels} channels, and the array's shape is "
                f"{array.shape}, not (height, width, {self.channels}){hint}."
            )
        values = bands_of(array)
        plan, how = _FITS[self.fit](self, array.shape[1], array.shape[0]), _RESAMPLE[self.interpolation]
        singly = (Image.fromarray(np.ascontiguousarray(values[:, :, k])) for k in range(self.channels))
        return self._normalised(
            torch.from_numpy(np.stack([np.array(_resample(one, plan, how)) for one in singly])), plan
        )

    def _normalised(self, x: Float[Tensor, "c h w"], plan: _Plan) -> tuple[Float[Tensor, "c H W"], Frame]:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return _padded(x.sub_(mean).div_(std), plan), Frame(*plan.source, plan.box)


def _crop(how: Preprocess, w: int, h: int) -> _Plan:
    target = _margin(how)
    if target[0] * h >= target[1] * w:  # the width is what limits, so the height overshoots
        resized = target[0], int(target[0] * h / w)
    else:
        resized = int(target[1] * w / h), target[1]
    return _centred((w, h), resized, how)


def _squash(how: Preprocess, w: int, h: int) -> _Plan:
    return _centred((w, h), _margin(how), how)


def _letterbox(how: Preprocess, w: int, h: int) -> _Plan:
    scale = min(how.size[1] / w, how.size[0] / h)
    return _centred((w, h), (max(1, round(w * scale)), max(1, round(h * scale))), how)


_FITS = {"crop": _crop, "squash": _squash, "letterbox": _letterbox}

IMAGENET = Preprocess((224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What most classifiers trained on ImageNet expect."""


def _margin(how: Preprocess) -> tuple[int, int]:
    return max(how.size[1], round(how.size[1] / how.crop)), max(how.size[0], round(how.size[0] / how.crop))


def _centred(source: tuple[int, int], resized: tuple[int, int], how: Preprocess) -> _Plan:
    out = how.size[1], how.size[0]
    # Python's round() takes halves to the even number: kept, because torchvision's CenterCrop does the same
    return _Plan(source, resized, (round((resized[0] - out[0]) / 2), round((resized[1] - out[1]) / 2)), out)


def _resample(picture: Image.Image, plan: _Plan, how: Image.Resampling) -> Image.Image:
    """The part of the resized picture that lies inside the window."""
    (rw, rh), (x, y) = plan.resized, plan.start
    inside = max(0, x), max(0, y), min(rw, x + plan.out[0]), min(rh, y + plan.out[1])
    if rw * rh <= _LARGEST_STEP:
        return picture.resize(plan.resized, how).crop(inside)
    # Not the rule: most results of this differ from resize-then-crop by a few grey levels, some by more.
    w, h = picture.size
    part = inside[0] * w / rw, inside[1] * h / rh, inside[2] * w / rw, inside[3] * h / rh
    return picture.resize((inside[2] - inside[0], inside[3] - inside[1]), how, box=part)


def _padded(x: Float[Tensor, "c h w"], plan: _Plan) -> Float[Tensor, "c H W"]:
    """Zeros, which is the mean colour, around a picture that does not fill the window."""
    (w, h), left, top = plan.out, max(0, -plan.start[0]), max(0, -plan.start[1])
    right, bottom = w - left - x.shape[2], h - top - x.shape[1]
    return torch.nn.functional.pad(x, (left, right, top, bottom)) if (left, top, right, bottom) != (0, 0, 0, 0) else x
