"""From channels first back to the axes that a layer gave, so that the model can go on from there."""

import torch
from torch import Tensor

from camlucida.core.gradients import full, vjp
from camlucida.types import Act, Layout


def put_back(acts: Act, raw: Tensor, layout: Layout) -> Tensor:
    """Activations in the axes of ``raw``, what the layer gave; what its layout leaves out (class tokens) is as it was.

    >>> raw = torch.tensor([[[9.0], [1.0], [2.0]]])  # a class token and two places
    >>> put_back(torch.tensor([[[5.0, 6.0]]]), raw, lambda t: t[:, 1:].mT).flatten().tolist()
    [9.0, 5.0, 6.0]
    """
    if layout(raw) is raw:
        return acts
    placed = scatter(torch.ones_like(acts[:1]), raw, layout) != 0
    return torch.where(placed, scatter(acts, raw, layout), full(raw))


def fresh(raw: Tensor, *kept: Tensor) -> bool:
    """Whether what is written into ``raw`` shows in nothing that is kept: made anew, and no view."""
    held = {k.untyped_storage().data_ptr() for k in kept}
    return raw._base is None and raw.is_contiguous() and raw.untyped_storage().data_ptr() not in held


def scatter(acts: Act, raw: Tensor, layout: Layout) -> Tensor:
    """The transpose of the layout: every value to the place it was read from, zeros elsewhere.

    >>> scatter(torch.tensor([[[5.0, 6.0]]]), torch.zeros(1, 3, 1), lambda t: t[:, 1:].mT).flatten().tolist()
    [0.0, 5.0, 6.0]
    """
    with torch.inference_mode(False), torch.enable_grad():
        blank = full(raw.detach()).new_zeros(len(acts), *raw.shape[1:]).requires_grad_()
        read = layout(blank)
        (found,) = vjp(read, acts[None].to(read), [blank])
    assert found is not None
    return found[0]
