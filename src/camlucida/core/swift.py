"""A faster body for a model that is asked about many pictures: BatchNorms folded, channels last in memory.

In evaluation a BatchNorm behind a convolution is one factor and one shift a channel, and both go into its weights:
``γ/σ (W ∗ x + b − μ) + β = (γ/σ W) ∗ x + (γ/σ (b − μ) + β)``. On a processor convolutions take less time, too, where
the channels of a place lie side by side. The numbers are the same within rounding, some of the work is gone.

Which BatchNorm stands right behind which convolution is seen in a run. The twin that is made of it shares with the
model every module that is not on the way to a folded one and every tensor that is not folded; the model is left as it
is. No body is believed before it has given the model's own outputs for two pictures.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camlucida.core.capture import Call, How, Inputs, run, watched
from camlucida.core.scope import named, unwrap
from camlucida.core.structure import tensors
from camlucida.core.twin import exchanged, shallow

WORTH = 32  # pictures from which on a faster body is looked for: to prove one takes about three forward passes
SLACK = 2**8  # how far its outputs may be from the model's own, in roundings of the largest
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Body:
    """A module that answers as the model does; ``last``: pictures are given to it with the channels last in memory."""

    net: nn.Module
    last: bool = False

    def seeing(self, xs: Tensor) -> Tensor:
        """The pictures ``n ch *full`` as this body takes them."""
        return xs.contiguous(memory_format=torch.channels_last) if self.last else xs


def fastest(net: nn.Module, inputs: Inputs, xs: Tensor) -> Body:
    """The fastest body that gives the model's outputs for pictures ``n ch *full``; the model itself where none does.

    Left alone are half precision, where another order of rounding is another answer, and models that somebody looks
    into by hooks.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Flatten()).eval()
    >>> body = fastest(net, Inputs((torch.rand(1, 3, 8, 8),)), torch.rand(2, 3, 8, 8))
    >>> body.net[1], body.last
    (Identity(), True)
    """
    net = unwrap(net)
    names = [n for n, m in named(net).items() if type(m) in (*_CONVOLUTIONS, *_NORMS)]
    if not names or xs.element_size() < 4 or any(map(watched, net.modules())):
        return Body(net)
    with run(net, inputs.showing(xs), [], spy=names, how=How(graph=False)) as tape:
        truth, found = tape.output, list(_bodies(net, tape.calls, xs))
    return next((body for body in found if _answers(body, inputs, xs, truth)), Body(net))


def _bodies(net: nn.Module, calls: Sequence[Call], xs: Tensor) -> Iterator[Body]:
    """What may be faster, the fastest first. Channels last have been measured to be on processors only."""
    last = xs.device.type == "cpu" and xs.dim() == 4 and sum(type(c.module) is nn.Conv2d for c in calls) > 1
    yield from [Body(folded(net, calls, last=True), True), Body(net, True)] if last else []
    if (twin := folded(net, calls)) is not net:
        yield Body(twin)


def _answers(body: Body, inputs: Inputs, xs: Tensor, truth: Any) -> bool:
    try:
        with run(body.net, inputs.showing(body.seeing(xs)), [], how=How(graph=False)) as tape:
            return same(tape.output, truth)
    except Exception:  # code that looks at its modules, or at how its tensors lie in memory
        return False


def same(one: Any, two: Any) -> bool:
    """Whether two outputs are the same within rounding, every tensor for itself; never where one is not finite.

    >>> same((torch.ones(2) + 1e-6, torch.zeros(1)), (torch.ones(2), torch.zeros(1)))
    True
    """
    ours, truth = tensors(one), tensors(two)
    return len(ours) == len(truth) > 0 and all(map(_same, ours, truth))


def _same(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if not two.is_floating_point():
        return torch.equal(one, two)
    slack = SLACK * torch.finfo(two.dtype).eps * float(two.abs().max()) if two.numel() else 0.0
    return torch.allclose(one, two, rtol=0, atol=slack)


# ----------------------------------------------------------------------------------------------------------- the twin


def folded(net: nn.Module, calls: Sequence[Call], last: bool = False) -> nn.Module:
    """``net`` with each BatchNorm folded that took what a convolution made, both run once; itself where there is none.

    ``last``: folded weights have their channels last in memory.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> with run(net, Inputs((torch.rand(1, 3, 8, 8),)), [], spy=["0", "1"]) as tape:
    ...     twin = folded(net, tape.calls)
    >>> twin
    Sequential(
      (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    >>> twin[2] is net[2], net[1]
    (True, BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True))
    """
    times, made = Counter(c.module for c in calls), {id(c.made): c.module for c in calls}
    new: dict[nn.Module, nn.Module] = {}
    for call in calls:
        conv, norm = made.get(id(call.given)), call.module
        if conv is not None and times[conv] == times[norm] == 1 and _foldable(conv, norm):
            new[conv], new[norm] = _fold(conv, norm, last), nn.Identity()
    return exchanged(net, new)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Plain modules of one precision, whose forward is that of their class, with statistics that were learned."""
    if type(conv) not in _CONVOLUTIONS or type(norm) not in _NORMS or norm.running_var is None:
        return False
    own = [v for m in (conv, norm) for v in (*m._parameters.values(), m._buffers.get("running_var")) if v is not None]
    plain = all(type(v) in (nn.Parameter, Tensor) and (v.dtype, v.device) == (own[0].dtype, own[0].device) for v in own)
    return plain and not any("forward" in vars(m) for m in (conv, norm))


def _fold(conv: nn.Module, norm: nn.Module, last: bool) -> nn.Module:
    held, of = conv._parameters, norm._parameters
    weight, var, mean = held["weight"], norm._buffers["running_var"], norm._buffers["running_mean"]
    assert isinstance(norm, _NORMS) and weight is not None and var is not None and mean is not None
    with torch.no_grad():
        scale = (var + norm.eps).rsqrt() * (1 if of["weight"] is None else of["weight"])
        shift = ((0 if held["bias"] is None else held["bias"]) - mean) * scale
        shift = shift if of["bias"] is None else shift + of["bias"]
        wide = weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
        wide = wide.contiguous(memory_format=torch.channels_last) if last and wide.dim() == 4 else wide
    made = {"weight": nn.Parameter(wide, requires_grad=False), "bias": nn.Parameter(shift, requires_grad=False)}
    return shallow(conv, _parameters=made)
