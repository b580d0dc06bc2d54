"""From maps to one number a channel: the mean over all places, and the poolings that it is compared with.

All four are drop-in for each other: ``pool(act)``, or ``pool(act, weight)`` where pictures of a batch are padded or
their places count differently. The weights are a mask or any numbers ≥ 0, ``b *space`` or ``b 1 *space``. A place of
weight zero is not there: whatever the padding holds, NaN included, cannot come through. A picture without any weight
has no mean, which is an error.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.errors import InputError
from camlucida.types import Act

Pooled = Float[Tensor, "b c *ones"]
Flat = Float[Tensor, "b c z"]


@final
class GlobalAveragePooling(nn.Module):
    """The mean over all places: each map becomes one number, and nothing is learnt that could overfit.

    ``y_c = Σ_p w_p A_c(p) / Σ_p w_p``, ``w = 1`` where no weight is given; shapes ``b c *space`` → ``b c``, with
    ``keepdim`` ``b c 1 1``, for one, two or three axes of space. [lin2014]

    Raises: InputError where there is no space, or the weights do not fit, are negative or all zero.

    >>> pool, act = GlobalAveragePooling(), torch.tensor([[[1.0, 3.0, 99.0]]])
    >>> pool(act[..., :2]).item(), pool(act, torch.tensor([[1.0, 1.0, 0.0]])).item()
    (2.0, 2.0)
    """

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, act: Act, weight: Tensor | None = None) -> Pooled:
        flat, share = _places(act, weight)
        mean = flat.mean(2) if share is None else (flat * share).sum(2)
        return _shaped(mean, act, self.keepdim)


@final
class GlobalMaxPooling(nn.Module):
    """The largest value of each map; a weight only says which places are there.

    ``y_c = max_p A_c(p)``; shapes and errors as `GlobalAveragePooling`. [zhou2016]

    >>> GlobalMaxPooling()(torch.tensor([[[1.0, 3.0, 2.0]]])).item()
    3.0
    """

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, act: Act, weight: Tensor | None = None) -> Pooled:
        flat, share = _places(act, weight)
        here = flat if share is None else flat.masked_fill(share == 0, -torch.inf)
        return _shaped(here.amax(2), act, self.keepdim)


@final
class GeneralizedMeanPooling(nn.Module):
    """The power mean, between the mean (``p = 1``) and the maximum (``p → ∞``), its exponent learnt with the net.

    ``y_c = (⟨max(A_c, eps)^p⟩)^(1/p)``: what is not positive counts as ``eps``. Computed in logarithms, so that no
    power overflows. Shapes and errors as `GlobalAveragePooling`; InputError for ``p = 0`` or ``eps ≤ 0``.
    [radenovic2018]

    >>> round(GeneralizedMeanPooling(p=2.0)(torch.tensor([[[1.0, 7.0]]])).item(), 4)
    5.0
    """

    def __init__(self, p: float = 3.0, learnable: bool = True, eps: float = 1e-6, keepdim: bool = False) -> None:
        super().__init__()
        if p == 0 or eps <= 0:
            raise InputError(f"a generalised mean needs p ≠ 0 and eps > 0; these are p={p}, eps={eps}.")
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learnable)
        self.eps, self.keepdim = eps, keepdim

    def forward(self, act: Act, weight: Tensor | None = None) -> Pooled:
        flat, share = _places(act, weight)
        mean = _log_mean_exp(self.p * flat.clamp(min=self.eps).log(), share)
        return _shaped((mean / self.p).exp(), act, self.keepdim)


@final
class LogSumExpPooling(nn.Module):
    """The smooth maximum, between the mean (``r → 0``) and the maximum (``r → ∞``).

    ``y_c = log⟨exp(r A_c)⟩ / r``; shapes and errors as `GlobalAveragePooling`; InputError for ``r = 0``, whose limit
    is the plain mean. [pinheiro2015]

    >>> round(LogSumExpPooling(r=1.0)(torch.tensor([[[0.0, 0.0]]])).item(), 4)
    0.0
    """

    def __init__(self, r: float = 5.0, learnable: bool = False, keepdim: bool = False) -> None:
        super().__init__()
        if r == 0:
            raise InputError("log-sum-exp pooling needs r ≠ 0; its limit at zero is GlobalAveragePooling.")
        self.r = nn.Parameter(torch.tensor(float(r)), requires_grad=learnable)
        self.keepdim = keepdim

    def forward(self, act: Act, weight: Tensor | None = None) -> Pooled:
        flat, share = _places(act, weight)
        return _shaped(_log_mean_exp(self.r * flat, share) / self.r, act, self.keepdim)


def _places(act: Act, weight: Tensor | None) -> tuple[Flat, Float[Tensor, "b 1 z"] | None]:
    """Places in one axis, those of weight zero set to zero, and each place's share of the whole; None: all the same."""
    if act.dim() < 3 or act[0, 0].numel() == 0:
        raise InputError(f"global pooling needs maps (b, c, *space) with places; this is {tuple(act.shape)}.")
    flat = act.flatten(2)
    if weight is None:
        return flat, None
    if tuple(weight.shape) not in {(len(act), *act.shape[2:]), (len(act), 1, *act.shape[2:])}:
        wanted = (len(act), *act.shape[2:])
        raise InputError(f"the weights of maps {tuple(act.shape)} are {wanted}, not {tuple(weight.shape)}.")
    w = weight.to(act).reshape(len(act), 1, -1)
    total = w.sum(2, keepdim=True)
    wrong = ~((total > 0) & total.isfinite() & (w >= 0).all(2, keepdim=True)).flatten()
    if bool(wrong.any()):
        which = ", ".join(map(str, wrong.nonzero().flatten().tolist()[:4]))
        raise InputError(f"weights are finite, ≥ 0 and somewhere positive; those of picture {which} are not.")
    return flat.masked_fill(w == 0, 0), w / total


def _log_mean_exp(flat: Flat, share: Float[Tensor, "b 1 z"] | None) -> Float[Tensor, "b c"]:
    each = -torch.tensor(float(flat.shape[2]), dtype=flat.dtype, device=flat.device).log()
    return (flat + (each if share is None else share.log())).logsumexp(2)


def _shaped(pooled: Float[Tensor, "b c"], act: Act, keepdim: bool) -> Pooled:
    return pooled.reshape(*pooled.shape, *(1,) * (act.dim() - 2)) if keepdim else pooled
