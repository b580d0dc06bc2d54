"""The architectures of three libraries, built with random weights and at little cost: for zoo.py.

Nothing is downloaded. Weights are not drawn by their authors' rules, which takes longer than the forward pass: memory
is left as it is while a net is built and filled from one pool of noise afterwards, scaled by fan-in, kernels even and
strongest in their middle. Norms stay at the identity, save that batch norms keep a signal in bounds.
What an author set to zero or nearly so for the start of training (a last layer, a residual branch's gain) is filled,
too: such a net has no evidence anywhere until it is trained.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_GAIN = 0.7  # less than keeps a signal's size: residual paths prevail, and what a cell sees stays where the cell is
_DRAWS = {Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_}
_DRAWS |= {getattr(nn.init, f"{name}_") for name in ("normal", "uniform", "kaiming_normal", "kaiming_uniform")}
_CHANGES = {Tensor.mul_, Tensor.add_, Tensor.clamp_, Tensor.div_, Tensor.sub_, Tensor.erfinv_}


class NoPicture(Exception):
    """A net that is not called with a picture alone."""


class Undrawn(TorchFunctionMode):
    """Random draws in place are left out inside, and what their author does to them next; ``skipped`` says where."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []  # held, so that no other tensor comes to lie at the same address
        self.skipped: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS or func in _CHANGES:
            tensor = args[0] if args else kwargs["tensor"]
            place = tensor.untyped_storage().data_ptr()
            if func in _DRAWS and place not in self.skipped:
                self.kept.append(tensor)
                self.skipped.add(place)
            if place in self.skipped:
                return tensor
        return func(*args, **kwargs)


def built(make: Callable[[], nn.Module], short: bool = False) -> nn.Module:
    """The net that ``make`` makes, every weight that matters filled with noise; ``short``: of like blocks but two."""
    with Undrawn() as undrawn:
        net = make()
    if short:
        shorten(net)
    pool, start = torch.randn(1048573, generator=torch.Generator().manual_seed(0)), 0
    with torch.no_grad():
        for name, weight in net.named_parameters():
            start += 7919
            _fill(name, weight, weight.untyped_storage().data_ptr() in undrawn.skipped, pool.roll(start))
    return net.eval()


def shorten(net: nn.Module, keep: int = 2) -> None:
    """Leave no more than ``keep`` of every row of blocks that are made alike, whatever their weights."""
    for parent in list(net.modules()):
        names = [name for name, block in parent.named_children() if len(list(block.children()))]
        made = [_make(parent.get_submodule(name)) for name in names]
        for i in reversed(range(keep, len(names))):
            if all(like == made[i] for like in made[i - keep : i]):
                delattr(parent, names[i])


def _make(block: nn.Module) -> object:
    """What a block is, but for the share of its branches that training drops."""
    return re.sub(r"drop_prob=[0-9.]+", "", repr(block)), [w.shape for w in block.parameters()]


def _fill(name: str, weight: Tensor, drawn: bool, pool: Tensor) -> None:
    if not weight.is_floating_point():
        return
    low, high = (float(v) for v in weight.aminmax()) if not drawn and weight.numel() else (0.0, 0.0)
    still = not drawn and low == high and abs(low) < 0.1  # a constant that shuts something off, or nearly so
    if weight.dim() < 2 or max(weight.shape) == weight.numel():
        if drawn and name.endswith(("bias", "weight")):
            weight.fill_(float(name.endswith("weight")))  # norms at the identity; a bias would drown a small signal
        elif drawn:
            _pour(weight, pool, 0.02)
        elif still and (low or not name.endswith(("bias", "beta"))):
            weight.fill_(1.0)
    elif drawn or still or not math.isfinite(low + high):
        table = name.rpartition(".")[2] not in ("weight", "in_proj_weight")  # of positions, or a token
        _pour(weight, pool, 0.02 if table else _GAIN / math.sqrt(weight[0].numel()))
        if not table and weight.dim() > 2:
            weight.copy_(_centred(weight))


def settle(net: nn.Module, x: Tensor) -> None:
    """Let batch norms bring a signal that has become weak or strong back in bounds, as trained ones would; one pass."""

    def note(norm: Any, given: tuple[Tensor, ...]) -> None:
        size = float(given[0].std()) if given[0].numel() > 1 else 0.0
        if norm.running_var is not None and 0 < size < math.inf:
            norm.running_var.fill_((size / min(max(size, 0.5), 4.0)) ** 2)

    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [m.register_forward_pre_hook(note) for m in norms]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()


def _centred(kernels: Tensor) -> Tensor:
    """The same on either side of their middle and strongest there, so that no layer moves what it sees."""
    size, bump = kernels.shape[2:], torch.ones(())
    for axis in range(2, kernels.dim()):
        kernels = (kernels + kernels.flip(axis)) / 2**0.5
    for side in size:
        at = (torch.arange(side) - (side - 1) / 2) / max(side / 4, 0.5)
        bump = bump[..., None] * torch.exp(-(at**2))
    return kernels * bump / bump.square().mean().sqrt()


def _pour(weight: Tensor, pool: Tensor, scale: float) -> None:
    flat = weight.view(-1) if weight.is_contiguous() else weight.new_empty(weight.numel())
    for part in flat.split(len(pool)):
        torch.mul(pool[: len(part)], scale, out=part)
    if not weight.is_contiguous():
        weight.copy_(flat.view_as(weight))


# ---------------------------------------------------------------------------------------------------------- the zoos


@dataclass(frozen=True)
class Entry:
    """One architecture of one library; ``family`` is its module in timm, its own name elsewhere."""

    source: str
    family: str
    model: str
    short: bool = False

    def build(self) -> tuple[nn.Module, Tensor]:
        """The net, and a picture of noise of the size it is made for."""
        net, shape = _BUILD[self.source](self)
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
        settle(net, x)
        return net, x


def entries(source: str) -> Iterator[Entry]:
    """Every architecture of a source, by name."""
    if source == "timm":
        import timm

        for module in timm.list_modules():
            yield from (Entry(source, module, name) for name in timm.list_models(module=module))
    elif source == "torchvision":
        import torchvision

        for name in torchvision.models.list_models(module=torchvision.models):
            yield Entry(source, torchvision.models.get_model_builder(name).__module__.rpartition(".")[2], name)
    else:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as kinds

        for kind, names in kinds.items():
            yield from (Entry(source, kind, name) for name in ([names] if isinstance(names, str) else names))


def parameters(entry: Entry) -> int:
    """How many parameters a net of timm has, without making room for them."""
    import timm

    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(entry.model).parameters())


def _timm(entry: Entry) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    net = built(lambda: timm.create_model(entry.model), entry.short)
    return net, tuple(timm.data.resolve_model_data_config(net)["input_size"])


def _torchvision(entry: Entry) -> tuple[nn.Module, tuple[int, ...]]:
    import torchvision

    net = built(lambda: torchvision.models.get_model(entry.model, weights=None), entry.short)
    crop = torchvision.models.get_model_weights(entry.model).DEFAULT.transforms().crop_size[0]
    side = getattr(net, "image_size", crop)
    return net, (3, side, side)


_OTHERWISE = {
    "ImageGPTForImageClassification": "takes the numbers of its pixels' colours in a palette, which have no gradient",
    "ShieldGemma2ForImageClassification": "takes a text with its picture, and says whether the text is true of it",
    "Siglip2ForImageClassification": "takes patches that are cut already, with a mask and the sizes of their grids",
}  # what is no classifier of a picture, though transformers lists it there


def _transformers(entry: Entry) -> tuple[nn.Module, tuple[int, ...]]:
    import transformers

    if entry.model in _OTHERWISE:
        raise NoPicture(_OTHERWISE[entry.model])
    kind = getattr(transformers, entry.model)
    config = kind.config_class()
    _shrink(config)
    config.num_labels = 10
    net = built(lambda: kind(config), entry.short)
    sizes = [config, *(getattr(config, n, None) for n in ("vision_config",))]
    said = next((s for c in sizes if (s := getattr(c, "image_size", None))), 224)
    space = tuple(said) if isinstance(said, list | tuple) else (said, said)
    return net, (next((n for c in sizes if (n := getattr(c, "num_channels", None))), 3), *space)


def _shrink(config: Any) -> None:
    """A few blocks for many in a configuration and those inside it, by what such fields are called; widths stay."""
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            _shrink(value)
        elif isinstance(value, list | tuple) and key.endswith(("layers", "blocks", "depth", "depths")):
            if all(isinstance(v, int) for v in value):
                setattr(config, key, type(value)(min(v, 3) for v in value))
        elif isinstance(value, int) and key.endswith(("layers", "vocab_size")):
            setattr(config, key, min(value, 1000 if key == "vocab_size" else 2))
        elif key == "depth_coefficient":
            setattr(config, key, 1.0)
        elif key == "num_cross_attention_heads":
            setattr(config, key, 1)  # as published models have it: eight do not divide their inputs' channels


_BUILD = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
SOURCES = tuple(_BUILD)
