"""Methods that read the spectrum of what a layer gave: its principal components, or what stands out of each channel.

``A`` is the activation ``b c *space`` and ``G = ∂y/∂A``. As a matrix it has a row for each of the ``Z`` places and a
column for each channel. A principal component has no sign of its own; each method says how it is given one. None needs
more than the smaller of the two Gram matrices, ``Z × Z`` or ``c × c``, for a whole batch on its own device.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.errors import MethodError
from camlucida.registry import register
from camlucida.types import Act, Map

Rows = Float[Tensor, "b z c"]
OnRows = Float[Tensor, "b z"]

_KERNELS = ("rbf", "sigmoid", "linear")
_FEW_PLACES, _STEPS = 512, 300  # so many have all eigenvectors at once; at most, before it is done so for more
_MOST_PLACES = 8192  # a kernel between all of them has 268 MB in single precision


@register(
    "eigencam",
    title="Eigen-CAM",
    differentiable=False,  # eigenvectors have no derivative where eigenvalues meet, thresholds none at all
    paper="muhammad2020",
    formula="A v₁, with A = U Σ Vᵀ, not centred",
    needs="activation",
    class_agnostic=True,
    cost="1 + the eigenvectors of the smaller Gram matrix",
    deviations="the paper leaves the sign open: here places of strong features are positive",
    insensitive="the class: all have one map; the layers after the one it reads",
)
def eigencam(act: Act) -> Map:
    """Eigen-CAM: how far each place goes along the first principal direction of its features.

    ``M = A v₁`` with ``A = U Σ Vᵀ``, ``Z × c``, not centred, so that ``A ≥ 0`` gives ``M ≥ 0``; the sign is that of
    ``Σ_p M(p) |A(p)| ≥ 0``. Shapes ``b c *space`` → ``b *space``; units of the activation. [muhammad2020]

    >>> eigencam(torch.tensor([[[3.0, 0.0], [4.0, 0.0]]])).round(decimals=4).tolist()  # one place, of length 5
    [[5.0, 0.0]]
    """
    rows = _rows(act)
    return _towards(_first(rows), _lengths(rows)).reshape(-1, *act.shape[2:])


@register(
    "eigengradcam",
    title="EigenGrad-CAM",
    differentiable=False,
    paper="muhammad2020",
    formula="(G⊙A) v₁, with G⊙A = U Σ Vᵀ, not centred",
    deviations=(
        "Eigen-CAM of gradient × activation, which has no paper of its own; the common implementation centres it and "
        "leaves its sign to chance: here the map agrees with Σ_k G_k ⊙ A_k, so that evidence against is negative"
    ),
)
def eigengradcam(act: Act, grad: Act) -> Map:
    """EigenGrad-CAM: the first principal direction of gradient times activation.

    ``M = (G⊙A) v₁`` with ``G⊙A = U Σ Vᵀ``; the sign is that of ``Σ_p M(p) Σ_k G_k(p) A_k(p) ≥ 0``, so that ``−y`` has
    the map ``−M``. Shapes ``b c *space`` → ``b *space``; units of the score. [muhammad2020]

    >>> eigengradcam(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[-2.0, 0.0]]])).tolist()
    [[-6.0, 0.0]]
    """
    rows = _rows(grad * act)
    return _towards(_first(rows), rows.sum(2)).reshape(-1, *act.shape[2:])


@register(
    "segeigencam",
    title="Seg-Eigen-CAM",
    differentiable=False,
    paper="chung2025",
    formula="(|G|⊙A) v₁, with |G|⊙A = U Σ Vᵀ; the largest magnitude is positive",
    deviations="none; not centred, as Eigen-CAM",
    insensitive="the sign of the score: y and −y have one map",
)
def segeigencam(act: Act, grad: Act) -> Map:
    """Seg-Eigen-CAM: the first principal direction of the activation weighted by how much it matters.

    ``M = (|G|⊙A) v₁`` with ``|G|⊙A = U Σ Vᵀ``; its largest magnitude is positive. Shapes ``b c *space`` → ``b *space``;
    units of the score. [chung2025]

    >>> segeigencam(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[-2.0, 0.0]]])).tolist()
    [[6.0, 0.0]]
    """
    return _towards(_first(_rows(grad.abs() * act))).reshape(-1, *act.shape[2:])


@register(
    "kpcacam",
    title="KPCA-CAM",
    differentiable=False,
    paper="karmani2024",
    formula="√λ₁ u₁ of the centred kernel K(p, q) = k(A(p), A(q))",
    needs="activation",
    class_agnostic=True,
    cost="1 + the eigenvectors of a Z × Z kernel",
    deviations=(
        "the kernel's width is measured on each picture, so that a rescaled layer has the same map: d² is the mean "
        "squared distance of two places, or the mean squared length of a place for kernel=sigmoid; the sign, left "
        "open by the paper, makes places of strong features positive; kernel=linear is centred Eigen-CAM"
    ),
    insensitive="the class: all have one map; the layers after the one it reads",
)
def kpcacam(act: Act, *, kernel: str = "rbf", width: float = 1.0) -> Map:
    """KPCA-CAM: Eigen-CAM in the space of a kernel, so that what stands out need not stand out along a line.

    ``M = √λ₁ u₁``, the first eigenpair of ``K`` centred in feature space; ``K = exp(−|A(p) − A(q)|² / (2 w² d²))``, or
    ``tanh(A(p)·A(q) / (w² d²))`` for ``sigmoid``, or ``A(p)·A(q)`` for ``linear``; ``w`` is ``width``. The sign is that
    of ``Σ_p M(p) |A(p)| ≥ 0``. Shapes ``b c *space`` → ``b *space``; no units (those of the activation if linear).
    Holds ``2 Z²`` numbers, one picture at a time. [karmani2024]

    Raises: MethodError for an unknown kernel, a width that is not positive, or more than 8,192 places.

    >>> kpcacam(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)).round(decimals=2).tolist()
    [[0.91, -0.3, -0.3, -0.3]]
    """
    _check_kernel(kernel, width, act[0, 0].numel())
    rows = _rows(act)
    made = [_towards(_kernel_component(one[None], kernel, width), _lengths(one[None])) for one in rows]
    return torch.cat(made).reshape(-1, *act.shape[2:])


@register(
    "fem",
    title="FEM",
    differentiable=False,
    paper="fuad2020",
    formula="Σ_k ⟨A_k⟩ · 1[A_k > ⟨A_k⟩ + s σ_k],  s = 2",
    needs="activation",
    class_agnostic=True,
    insensitive="the class: all have one map; the layers after the one it reads",
)
def fem(act: Act, *, sigmas: float = 2.0) -> Map:
    """Feature Explanation Method: each channel marks the places where it is unusually high, and counts by its mean.

    ``M = Σ_k μ_k · 1[A_k > μ_k + s σ_k]`` with a channel's mean ``μ`` and deviation ``σ`` over its ``Z`` places. No
    place of ``Z ≤ s² + 1`` can be so high: 5 for ``s = 2``. Shapes ``b c *space`` → ``b *space``; units of the
    activation. [fuad2020]

    >>> fem(torch.tensor([[[6.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])).tolist()
    [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    flat = act.flatten(2)
    largest = flat.abs().amax(2, keepdim=True)
    part = flat / _divisor(largest)  # squares of 1e-30 would be none
    mean, spread = part.mean(2, keepdim=True), part.std(2, keepdim=True, correction=0)
    # Beyond rounding: a channel that is the same everywhere stands out nowhere.
    high = part - mean - sigmas * spread > 8 * torch.finfo(act.dtype).eps
    found = (flat.mean(2, keepdim=True) * high).sum(1)
    return torch.where(_finite(act)[:, None], found, torch.nan).reshape(-1, *act.shape[2:])


# --------------------------------------------------------------------------------------------- principal components


def _rows(act: Act) -> Rows:
    return act.flatten(2).transpose(1, 2)


def _lengths(rows: Rows) -> OnRows:
    scale = _divisor(rows.abs().amax((1, 2), keepdim=True))
    return (rows / scale).square().sum(2).sqrt()  # up to one positive number a picture: a sign is wanted


def _finite(values: Tensor) -> Tensor:
    return values.flatten(1).isfinite().all(1)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where((scale > 0) & scale.isfinite(), scale, 1)


def _first(rows: Rows) -> OnRows:
    """``rows · v₁`` of each matrix, of any sign; NaN for one that is not finite, which no solver takes."""
    finite = _finite(rows)[:, None]
    scale = _divisor(rows.abs().amax((1, 2), keepdim=True))
    part = torch.where(finite[..., None], rows / scale, 0)  # Gram matrices hold squares: neither 0 nor infinite now
    if part.shape[1] <= part.shape[2]:
        left = torch.linalg.eigh(part @ part.mT)[1][..., -1:]
        found = left * torch.linalg.vector_norm(part.mT @ left, dim=1, keepdim=True)
    else:
        found = part @ torch.linalg.eigh(part.mT @ part)[1][..., -1:]
    return torch.where(finite, (found * scale)[..., 0], torch.nan)


def _towards(found: OnRows, like: OnRows | None = None) -> OnRows:
    """``found`` or its negative: what agrees with ``like``; where neither does, what has its largest magnitude."""
    by_largest = found.amax(1) + found.amin(1)
    if like is not None:
        size = _divisor(found.abs().amax(1, keepdim=True))
        agree, noise = (found / size * like).sum(1), torch.finfo(found.dtype).eps * 8 * like.abs().sum(1)
        by_largest = torch.where(agree.abs() > noise, agree, by_largest)
    return torch.where((by_largest < 0)[:, None], -found, found)


# ------------------------------------------------------------------------------------------------------------ kernels


def _check_kernel(kernel: str, width: float, places: int) -> None:
    if kernel not in _KERNELS:
        raise MethodError(f"KPCA-CAM has no kernel {kernel!r}: it has {', '.join(_KERNELS)}.")
    if not width > 0:
        raise MethodError(f"KPCA-CAM: width is how many mean distances wide the kernel is, above 0; got {width}.")
    if places > _MOST_PLACES:
        raise MethodError(
            f"KPCA-CAM compares every place with every other: {places} places are {places**2:.2g} numbers. "
            f"Ask for a layer with at most {_MOST_PLACES} places, or for Eigen-CAM, which needs no kernel."
        )


def _kernel_component(rows: Rows, kernel: str, width: float) -> OnRows:
    finite = _finite(rows)[:, None]
    scale = _divisor(rows.abs().amax((1, 2), keepdim=True))
    part = torch.where(finite[..., None], rows / scale, 0)
    made = _kernel(part, kernel, width)
    noise = 8 * torch.finfo(made.dtype).eps * made.shape[1] * made.abs().amax((1, 2))[:, None]
    most, vector = _leading(_centred(made)[0])
    found = vector[None] * torch.where(most > noise, most, 0).sqrt()  # where all places are alike, none stands out
    return torch.where(finite, found * scale[..., 0] if kernel == "linear" else found, torch.nan)


def _leading(made: Float[Tensor, "z z"]) -> tuple[Float[Tensor, ""], Float[Tensor, " z"]]:
    """The largest eigenvalue and its vector; of a large matrix by steps that all go to it, as only one is wanted."""
    if len(made) > _FEW_PLACES:
        draw = torch.Generator().manual_seed(0)
        across = torch.randn(len(made), 8, generator=draw, dtype=torch.float64).to(made)
        for _ in range(_STEPS):
            across = torch.linalg.qr(across)[0]
            onward = made @ across
            values, turn = torch.linalg.eigh(across.T @ onward)
            most, vector, moved = values[-1], across @ turn[:, -1], onward @ turn[:, -1]
            if bool((moved - most * vector).norm() <= 100 * torch.finfo(made.dtype).eps * most.abs()):
                return most, vector
            across = onward
    values, vectors = torch.linalg.eigh(made)
    return values[-1], vectors[:, -1]


def _kernel(part: Rows, kernel: str, width: float) -> Float[Tensor, "b z z"]:
    if kernel == "linear":
        return part @ part.mT
    if kernel == "sigmoid":
        inner = part @ part.mT
        return (inner / (width**2 * _divisor(part.square().sum(2).mean(1)))[:, None, None]).tanh()
    moved = part - part.mean(1, keepdim=True)  # distances do not change, and lose fewer digits
    squares = moved.square().sum(2)
    apart = (squares[:, :, None] + squares[:, None] - 2 * moved @ moved.mT).clamp(min=0)
    mean = apart.mean((1, 2), keepdim=True)
    rounding = (16 * torch.finfo(part.dtype).eps) ** 2 * part.square().sum(2).mean(1)[:, None, None]
    return (apart / (-2 * width**2 * torch.where(mean > rounding, mean, 1))).exp()


def _centred(made: Float[Tensor, "b z z"]) -> Float[Tensor, "b z z"]:
    made = made - made.mean(1, keepdim=True)
    return made - made.mean(2, keepdim=True)
