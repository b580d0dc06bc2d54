"""What changes from step to step of a training run: the net, the moving average of its weights, the optimizer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from camlucida.errors import ModelError
from camlucida.gap.recipe import Recipe

_PARTS = ("net", "average", "optimizer", "scaler")


@final
class State:
    """A net in training on the device where it is, and everything that a step changes with it.

    >>> state = State(nn.Linear(2, 2), Recipe())
    >>> sorted(state.told())
    ['average', 'net', 'optimizer', 'scaler']
    """

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        self.device = next((p.device for p in net.parameters()), torch.device("cpu"))
        flat = any(isinstance(m, nn.Conv2d) for m in net.modules())
        self.net = net.to(memory_format=torch.channels_last) if flat else net  # type: ignore[call-overload]
        self.net.train()
        self.average = AveragedModel(self.net, multi_avg_fn=self._averaged, use_buffers=True).eval()
        self.optimizer = _optimizer(self.net, recipe)
        cuda = self.device.type == "cuda"
        self.half = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float16 if cuda else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of a loss, its norm cut to 5; the average follows."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.net)

    def set_rate(self, share: float) -> None:
        """This share of the recipe's rate of learning, each group of parameters at its own pace."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * share * group["pace"]

    @torch.no_grad()
    def _averaged(self, before: Any, now: Any, count: Any) -> None:
        """At first the mean of few, later of about 1 / (1 − average) steps; counters of batches are copied."""
        decay = min(self.recipe.average, (1 + int(count)) / (10 + int(count)))
        for old, new in zip(before, now, strict=True):
            old.lerp_(new, 1 - decay) if old.is_floating_point() else old.copy_(new)

    def told(self) -> dict[str, Any]:
        """All of it, as a checkpoint keeps it."""
        return {name: getattr(self, name).state_dict() for name in _PARTS}

    def take_up(self, told: Mapping[str, Any]) -> None:
        """What `told` gave. Raises whatever PyTorch raises where it is of another net."""
        for name in _PARTS:
            getattr(self, name).load_state_dict(told[name])


def rate(step: int, whole: int, warmup: float) -> float:
    """The share of the highest rate: a line up to it within ``warmup`` of the ``whole``, then half a cosine down.

    >>> [round(rate(step, 5, 0.2), 2) for step in range(5)]
    [1.0, 1.0, 0.85, 0.5, 0.15]
    """
    rising = max(1, round(warmup * whole))
    if step < rising:
        return (step + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / (whole - rising))


def batches(own: Tensor, recipe: Recipe, g: Generator) -> Iterator[Sequence[int]]:
    """The places of an epoch's pictures, whose targets are ``own``, in batches, in an order drawn by lot.

    A last batch of one picture would have no statistics and is left out.
    """
    if recipe.balance:
        count = torch.bincount(own + 1).double()[own + 1]
        order = torch.multinomial(count**-recipe.balance, len(own), replacement=True, generator=g)
    else:
        order = torch.randperm(len(own), generator=g)
    yield from (part.tolist() for part in order.split(recipe.batch) if len(part) > 1)


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weights decay, biases and norms do not; what is not the head's learns at its own pace."""
    head = {id(p) for name, m in net.named_children() if name == "head" for p in m.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in (p for p in net.parameters() if p.requires_grad):
        decay = recipe.weight_decay if p.dim() > 1 else 0.0
        pace = 1.0 if id(p) in head or not head else recipe.trunk
        groups.setdefault((decay, pace), []).append(p)
    if not groups:
        raise ModelError("every parameter of the net is frozen: there is nothing to train.")
    asked = [{"params": ps, "weight_decay": decay, "pace": pace} for (decay, pace), ps in groups.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(asked, lr=recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(asked, lr=recipe.lr)
