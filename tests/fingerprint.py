"""Everything that a call must leave as it found it, taken down before and compared after."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image, ImageFile
from torch import nn

TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_hooks",
)


def fingerprint(model: nn.Module) -> dict[str, Any]:
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    return {
        "modules": {n: (id(m), type(m), m.training) for n, m in modules.items()},
        "hooks": {n: [tuple(getattr(m, t).items()) for t in TABLES] for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "requires_grad": {n: p.requires_grad for n, p in parameters.items()},
        "grad": {n: (id(p.grad), None if p.grad is None else p.grad.clone()) for n, p in parameters.items()},
        "state": {n: t.clone() for n, t in model.state_dict().items()},
        "random": torch.get_rng_state(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "process": (torch.get_num_threads(), torch.get_default_dtype(), torch.backends.cudnn.enabled),
        "dynamo": torch._dynamo.eval_frame._stance.stance if hasattr(torch, "_dynamo") else None,
        "warnings": list(warnings.filters),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
    }


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(v, two[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    before = fingerprint(model)
    try:
        yield
    finally:
        after = fingerprint(model)
        changed = [k for k in before if not same(before[k], after[k])]
        assert not changed, f"the call changed: {changed}"
