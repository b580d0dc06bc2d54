"""A model by itself: a copy that foreign code may put hooks into, from pictures to the scores of the targets."""

import copy
from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from camlucida.core import targets as targets_
from camlucida.core.inputs import Inputs
from camlucida.core.outputs import chosen
from camlucida.core.scope import unwrap
from camlucida.errors import MethodError
from camlucida.types import Target


@final
class Alone(nn.Module):
    """``n ch *full`` → ``n t``: pictures in, one score a target out, in evaluation mode.

    It shares no parameter and no module with the net that it was made from: whatever is done to it dies with it.

    Raises: MethodError where the net cannot be copied.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> one = Alone(net, Inputs((torch.zeros(1, 3, 2, 2),)), [lambda y: y[:, 4]])
    >>> one(torch.zeros(7, 3, 2, 2)).shape
    torch.Size([7, 1])
    """

    def __init__(self, net: nn.Module, inputs: Inputs, targets: Sequence[Target]) -> None:
        super().__init__()
        try:
            self.net = copy.deepcopy(unwrap(net)).eval().requires_grad_(False)
        except Exception as problem:  # whatever a user's module raises when it is copied
            raise MethodError(
                f"this method works on a copy of the model, and it cannot be copied ({problem}): "
                "use a method that leaves the model as it is, such as 'gradcam' or 'integratedgradients'."
            ) from None
        self._inputs, self._targets = inputs, tuple(targets)

    def forward(self, x: Tensor) -> Float[Tensor, "n t"]:
        shown = self._inputs.showing(x)
        return targets_.scores(self._targets, chosen(self.net(*shown.args, **shown.kwargs), shown.output), len(x)).T
