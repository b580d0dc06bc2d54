"""Methods that read the head's own weights: the beginning of the family.

The ``grad`` they are given is the gradient of a global average + linear head, ``W/Z`` at each of ``Z`` places; the
engine refuses them where the model has no such head.
"""

from camlucida.maps import weigh
from camlucida.registry import register
from camlucida.types import Act, Map


@register(
    "cam",
    title="CAM",
    paper="zhou2016",
    formula="Σ_k W_k A_k",
    needs="head",
    cost="1",
    at_gap=lambda g, act: g * act[0, 0].numel(),
)
def cam(act: Act, grad: Act) -> Map:
    """CAM: the class's weights on the channels; its mean over the places plus the bias is the logit.

    ``M = Σ_k W_k A_k`` with ``W = Z·G``; shapes ``b c *space`` → ``b *space``; units of the logit. [zhou2016, lin2014]

    >>> import torch
    >>> cam(torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.25)).mean().item()
    1.0
    """
    return weigh(grad.flatten(2).sum(2), act)
