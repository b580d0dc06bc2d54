"""Methods that read how the tokens of a transformer attend to each other.

``A_l`` is the attention of block ``l``, ``h n n`` (heads, asking, answering), ``G_l = ∂y/∂A_l`` and ``r`` the share of
each token in what the model reads out: one for a class token, equal parts where the mean of places or a class and a
distillation token are read. Tokens before the places (class, distillation, registers) are left out of every map.

>>> import camlucida as cl
>>> class Net(torch.nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.patch, self.head = torch.nn.Conv2d(1, 8, 2, 2), torch.nn.Linear(8, 3)
...         self.block = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True)
...     def forward(self, x):
...         return self.head(self.block(self.patch(x).flatten(2).mT).mean(1))
>>> net, x = Net(), torch.rand(1, 1, 6, 8)
>>> for method in ("rollout", "attentionrelevance", "legrad", "gradeclip"):
...     print(tuple(cl.explain(net, x, target=cl.classes(0), method=method).map.shape))
(1, 3, 4)
(1, 3, 4)
(1, 3, 4)
(1, 3, 4)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from camlucida.errors import MethodError
from camlucida.registry import register
from camlucida.types import Attention, Scorer

Maps = Float[Tensor, "t *space"]
_HEADS = {"mean": lambda a: a.mean(-3), "min": lambda a: a.amin(-3), "max": lambda a: a.amax(-3)}


@register(
    "rollout",
    title="Attention rollout",
    paper="abnar2020",
    formula="r · Π_l ½(⟨A_l⟩_h + I), last block first",
    needs="attention",
    class_agnostic=True,
    cost="1 + last block",
    deviations=(
        "the paper reads the row of a class token; where the model reads others, the mean of their rows. "
        "heads=min and heads=max are common variants: rows are then divided by their sums again"
    ),
    insensitive="the class; what lies between and after the attention: head, values and MLPs",
)
def rollout(scorer: Scorer, *, heads: str = "mean", last: int = 0) -> Maps:
    """Attention rollout: attention and the residual path, in equal parts, multiplied through the blocks.

    ``r · Â_L ⋯ Â_1`` with ``Â = ½(mean_h A + I)``; ``last`` blocks only, 0 for all; shape ``t *space``, the same for
    every target; a share of all tokens. [abnar2020]

    >>> from camlucida.registry import get
    >>> get("rollout:heads=max").choices
    {'heads': 'mean', 'last': 0}
    """
    if heads not in _HEADS:
        raise MethodError(f"rollout: heads is one of {', '.join(_HEADS)}; got {heads!r}.")

    def row(seen: Attention) -> Tensor:
        along = seen.reads[None]
        for probs in reversed(seen.probs):
            one = _HEADS[heads](probs)
            mixed = one + torch.eye(len(one)).to(one)
            along = along @ (mixed / mixed.sum(-1, keepdim=True))
        return seen.map(along)

    return scorer.attend(row, last, "none")


@register(
    "attentionrelevance",
    title="Generic attention explainability",
    paper="chefer2021",
    formula="r · (R − I),  R ← R + ⟨relu(G_l ⊙ A_l)⟩_h R",
    needs="attention",
    cost="1 + blocks",
    deviations=(
        "the paper reads the row of a class token; where the model reads others, the mean of their rows. The identity "
        "that R begins with is taken away: it says of no place more than of another"
    ),
)
def attentionrelevance(scorer: Scorer, *, last: int = 0) -> Maps:
    """Generic attention explainability: relevance gathered where attention raises the score, block by block.

    ``R = I``; ``R ← R + mean_h relu(G_l ⊙ A_l) · R``; map ``r · (R − I)``; ``last`` blocks only, 0 for all; shape
    ``t *space``; units of the score. [chefer2021]

    >>> from camlucida.registry import get
    >>> get("attentionrelevance").having(last=4).label
    'attentionrelevance:last=4'
    """

    def row(seen: Attention) -> Tensor:
        start = along = seen.reads.expand(len(seen.grads[0]), -1)
        for probs, grads in zip(reversed(seen.probs), reversed(seen.grads), strict=True):
            along = along + torch.einsum("mi,mij->mj", along, (grads * probs).relu().mean(1))
        return seen.map(along - start)

    return scorer.attend(row, last)


@register(
    "legrad",
    title="LeGrad",
    paper="bousselham2025",
    formula="⟨relu(∂y_l/∂A_l)⟩_{l,h,asking},  y_l = y(mean of block l's tokens)",
    needs="attention",
    cost="3 + blocks",
    deviations=(
        "none; the score y_l of a block is what the model's own end (all that follows the last block: norm, pooling, "
        "head) gives when the mean of the block's tokens stands in the place of every token, so that no head must be "
        "known. Not min-max normalised"
    ),
)
def legrad(scorer: Scorer, *, last: int = 0) -> Maps:
    """LeGrad: how each block's own score grows with the attention to a place.

    ``M = mean over l, h, asking of relu(∂y_l/∂A_l)``, with ``y_l`` the score of the mean of block ``l``'s tokens;
    ``last`` blocks only, 0 for all; shape ``t *space``; units of the score. [bousselham2025]

    >>> from camlucida.registry import get
    >>> get("legrad:last=2").label
    'legrad:last=2'
    """

    def row(seen: Attention) -> Tensor:
        return seen.map(torch.stack([g.relu().mean((1, 2)) for g in seen.grads]).mean(0))

    return scorer.attend(row, last, "block")


@register(
    "gradeclip",
    title="Grad-ECLIP",
    paper="zhao2024",
    formula="Σ_d g_d v_i,d s_i,  s = minmax_i cos(q, k_i)",
    needs="attention",
    cost="2 + last block",
    deviations=(
        "signed: the paper's last ReLU is a separate step. The paper reads the class token; where the model reads "
        "others, the sum over them"
    ),
)
def gradeclip(scorer: Scorer) -> Maps:
    """Grad-ECLIP: the last block's values, by the gradient at what they make and a loosened attention.

    ``M(i) = Σ_d g_d v_i,d s_i`` with ``g`` the gradient at the gathered values of the token that is read, over all
    heads, and ``s_i = minmax over places of cos(q, k_i)``; shape ``t *space``; units of the score. [zhao2024]

    >>> from camlucida.registry import get
    >>> get("gradeclip").having(last=2)
    Traceback (most recent call last):
        ...
    camlucida.errors.MethodError: Grad-ECLIP has no option 'last'; it has none.
    """

    def row(seen: Attention) -> Tensor:
        if not seen.inside:
            raise MethodError(
                "Grad-ECLIP needs the queries, keys and values of the last block, and this model's code hides them: "
                "method='attentionrelevance' works without."
            )
        query, key, value = (part.transpose(0, 1).flatten(1) for part in seen.inside[:3])  # n (h d)
        flow = seen.inside[3].transpose(1, 2).flatten(2)  # m n (h d)
        live = seen.reads > 0
        places = len(key) - seen.map(seen.reads[None]).numel()
        like = torch.nn.functional.normalize(query[live], dim=1) @ torch.nn.functional.normalize(key[places:], dim=1).T
        low, high = like.aminmax(dim=1, keepdim=True)
        flat = high - low <= 16 * torch.finfo(like.dtype).eps  # no place is liked more than another
        loose = torch.where(flat, 1.0, (like - low) / torch.where(flat, 1, high - low))
        found = torch.einsum("mrd,id,ri->mi", flow[:, live], value[places:], loose)
        return seen.map(found)

    return scorer.attend(row, 1)
