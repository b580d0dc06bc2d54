"""A network that ends in a GAP head, and what converting one changed."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from camlucida.gap.heads import GAPHead


@final
@dataclass(frozen=True)
class Report:
    """What a conversion to GAP changed: numbers of parameters, grids of the last maps, and modules by name.

    >>> print(Report(1000, 400, 380, (7, 7), (14, 14), ("pool5",)))
    1,000 → 400 parameters (60.0 % saved; 380 kept), maps 7×7 → 14×14 (changed: pool5)
    """

    before: int
    after: int
    kept: int
    grid_before: tuple[int, ...]
    grid: tuple[int, ...]
    changed: tuple[str, ...] = ()

    @property
    def saved(self) -> int:
        """Parameters that the new net does not need; negative where the new head is the larger one."""
        return self.before - self.after

    def __str__(self) -> str:
        grids = " → ".join("×".join(map(str, g)) for g in dict.fromkeys((self.grid_before, self.grid)))
        share = f"{100 * self.saved / max(1, self.before):.1f} % saved; {self.kept:,} kept"
        changed = f" (changed: {', '.join(self.changed)})" if self.changed else ""
        return f"{self.before:,} → {self.after:,} parameters ({share}), maps {grids}{changed}"


@final
class GAPNet(nn.Module):
    """Feature maps and a GAP head: ``logits = head(features(x))``.

    Shapes: ``b c *space`` → ``b k``. ``frozen`` features take no gradient and stay in evaluation mode also in a
    training loop, so that their running statistics stay as they are. ``report`` is what `to_gap` changed.

    >>> import torch
    >>> from camlucida.gap.heads import GAPLinear
    >>> net = GAPNet(nn.Conv2d(3, 8, 3), GAPLinear(8, 5))
    >>> x = torch.rand(2, 3, 16, 16)
    >>> net(x).shape, net.class_maps(x).shape
    (torch.Size([2, 5]), torch.Size([2, 5, 14, 14]))
    """

    def __init__(
        self, features: nn.Module, head: GAPHead, *, frozen: bool = False, report: Report | None = None
    ) -> None:
        super().__init__()
        self.features, self.head, self.frozen, self.report = features, head, frozen, report
        if frozen:
            features.requires_grad_(False).eval()

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.head(self.features(x))
        return logits

    def class_maps(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b k *grid"]:
        """The confidence map of every class of every picture, from one forward pass, as the head defines it."""
        return self.head.class_maps(self.features(x))

    def train(self, mode: bool = True) -> "GAPNet":
        """Training mode on or off; frozen features stay in evaluation mode."""
        nn.Module.train(self, mode)
        if self.frozen:
            self.features.eval()
        return self
