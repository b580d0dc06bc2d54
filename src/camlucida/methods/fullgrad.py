"""FullGrad: what the picture and every bias of the model add to the score, all laid over the picture."""

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.errors import MethodError
from camlucida.maps import resize
from camlucida.registry import register
from camlucida.types import Scorer


def rescaled(term: Float[Tensor, "c *space"]) -> Float[Tensor, "c *space"]:
    """``|·|`` brought to [0, 1] by the extremes of the *whole* term, all its channels together; constant ones to 0.

    >>> rescaled(torch.tensor([[1.0, -2.0], [3.0, 5.0]])).tolist()  # 1, 2, 3, 5: less 1, over 4
    [[0.0, 0.25], [0.5, 1.0]]
    """
    size = term.abs()
    low, span = size.min(), size.max() - size.min()
    return (size - low) / torch.where(span > 0, span, 1)


@register(
    "fullgrad",
    title="FullGrad",
    paper="srinivas2019",
    formula="Σ_c ψ(x ⊙ G)_c + Σ_l Σ_c ψ(b_l ⊙ G_l)_c,  ψ = up(minmax_l |·|)",
    needs="model",
    at="input",
    homogeneous=False,
    cost="2 + backward",
    deviations=(
        "none from the authors' code but that 0/0 is 0 and upsampling aligns cell centres; biases of all convolutions, "
        "linear layers and normalisations, the running statistics of a BatchNorm, and constants added to what flows; "
        "those without places (linear layers at the end) count in the sum only. What other nonlinearities than ReLU "
        "add to their tangents, the paper's implicit biases, is shown with implicit=True and counts in the sum always; "
        "normalisation by the picture's own statistics, attention and probabilities break the sum: strict=True refuses"
    ),
)
def fullgrad(scorer: Scorer, *, implicit: bool = False, strict: bool = False) -> Float[Tensor, "t *space"]:
    """FullGrad: the input and all biases times their gradients, each layer rescaled as a whole, summed.

    ``M = Σ_c ψ(x ⊙ G) + Σ_l Σ_c ψ(b_l ⊙ G_l)`` with ``ψ = up(minmax |·|)``, never negative; ``b c *space`` for one
    picture → ``t *space``. ``implicit`` adds what nonlinearities other than ReLU do, ``f(x) − f'(x) x``. With it
    ``Σ x ⊙ G + Σ_l Σ b_l ⊙ G_l = y`` for models of affine layers and nonlinearities of single numbers; ``strict``
    proves the sum for this picture. At a layer it is the same of what follows the layer. [srinivas2019]

    Raises: MethodError where places are tokens without a known grid, and, ``strict``, where the terms do not sum to
    the score.

    >>> import camlucida as cl
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    >>> cl.explain(net, torch.randn(1, 3, 8, 8), target=2, method="fullgrad:strict=true").map.shape
    torch.Size([1, 8, 8])
    """
    size = scorer.act.shape[1:]
    if strict:
        _prove(scorer)

    def read(terms: list[Tensor], _rest: Tensor) -> Tensor:
        # Resizing is linear: the sum over channels may come first.
        return torch.stack([resize(rescaled(term).sum(0)[None], size)[0] for term in terms]).sum(0)

    return scorer.flow(read, implicit)


def completeness(scorer: Scorer) -> Float[Tensor, " t"]:
    """``Σ x ⊙ G + Σ_l Σ b_l ⊙ G_l``, all implicit biases counted: the score, if the model allows. [srinivas2019]"""
    return scorer.flow(lambda terms, rest: rest + torch.stack([term.sum() for term in terms]).sum())


def _prove(scorer: Scorer) -> None:
    total = completeness(scorer)
    gap = float((total - scorer.base).abs().max())
    size = float(scorer.base.abs().max())
    if not gap <= 1e-2 * size + 1e-6:
        raise MethodError(
            f"the terms of FullGrad sum to the score only where a model is made of affine layers and activation "
            f"functions: here they miss it by {gap:.3g} where the score is up to {size:.3g} (normalisation by the "
            "picture's own statistics, attention, a probability). strict=False shows them all the same; "
            "'integratedgradients' sums to the score of any model."
        )
