"""A bridge to Captum: methods that it has and this house has not, under the same `explain`.

Captum puts hooks into a model, so it works on a copy. It sees modules only: a ReLU that is called as a function is
invisible to DeepLIFT and LRP, which then treat it as if it were linear. Needs ``pip install camlucida[captum]``.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from camlucida.errors import MethodError
from camlucida.registry import register
from camlucida.types import Scorer

Maps = Float[Tensor, "t *full"]
_MODULES = "computed by Captum, which sees modules only: a rectifier called as a function counts as linear"


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers in every call, and everybody's generators as they were: Captum draws from the global."""
    import numpy as np

    kept, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(numbers)


def _captum(room: str = "captum.attr") -> Any:
    try:
        return import_module(room)
    except ImportError:
        raise MethodError(
            "this method is computed by Captum, which is not installed: pip install camlucida[captum]. Without it, "
            "'integratedgradients' and 'smoothgrad' also work at the pixels."
        ) from None


def _asked(scorer: Scorer, name: str, attribute: Callable[[Any, Tensor, int], Tensor]) -> Maps:
    """The attributions of every target by the class of Captum called ``name``, summed over channels."""
    kind = getattr(_captum(), name)
    if scorer.act.shape != scorer.x.shape or not torch.equal(scorer.act, scorer.x.to(scorer.act)):
        raise MethodError(f"Captum's {name} works at the pixels: ask for it with no layer, or layer='input'.")
    rows = []
    with _seeded(), torch.enable_grad():
        for t in range(len(scorer.base)):
            x = scorer.x[None].detach().clone().requires_grad_()
            try:
                found = attribute(kind(scorer.alone()), x, t)
            except (AssertionError, TypeError, RuntimeError, NotImplementedError) as problem:
                if isinstance(problem, torch.OutOfMemoryError):
                    raise
                raise MethodError(f"Captum's {name} does not bear this model: {problem}") from problem
            rows.append(found.detach()[0].sum(0).to(scorer.act))
    return torch.stack(rows)


@register(
    "captumdeeplift",
    title="DeepLIFT (Captum)",
    paper="shrikumar2017",
    formula="Σ_c m_c ⊙ (x − 0)_c,  m the multipliers of the rescale rule",
    needs="model",
    at="input",
    cost="2 + 2 (1 + backward) a target",
    deviations=f"{_MODULES}; the baseline is zero",
)
def deeplift(scorer: Scorer) -> Maps:
    """DeepLIFT: differences from a zero baseline, passed back by the rescale rule.

    ``M = Σ_c m_c ⊙ x_c``; ``b c *space`` for one picture → ``t *full``; units of the score. [shrikumar2017]

    Raises: MethodError where Captum is not installed, or does not bear the model.
    """
    return _asked(scorer, "DeepLift", lambda method, x, t: method.attribute(x, target=t))


@register(
    "captumgradientshap",
    title="GradientSHAP (Captum)",
    paper="lundberg2017",
    formula="Σ_c mean_n (x + ε_n − x'_n)_c ⊙ G_c(x'_n + α_n (x + ε_n − x'_n))",
    needs="model",
    at="input",
    cost="2 + samples · (1 + backward) a target",
    deviations="computed by Captum; the baselines are zero and the picture's own mean colour; the numbers are seeded",
)
def gradientshap(scorer: Scorer, *, samples: int = 16, noise: float = 0.0) -> Maps:
    """GradientSHAP: gradients at random points between baselines and the picture, an estimate of Shapley values.

    ``M = Σ_c mean_n (x − x'_n)_c ⊙ G_c(x'_n + α_n (x − x'_n))``; ``b c *space`` for one picture → ``t *full``; units
    of the score. [lundberg2017]

    Raises: MethodError where Captum is not installed, or does not bear the model.
    """
    x = scorer.x
    mean = x.flatten(1).mean(1).reshape(-1, *(1,) * (x.dim() - 1)).expand_as(x)
    baselines = torch.stack([torch.zeros_like(x), mean])
    return _asked(
        scorer,
        "GradientShap",
        lambda method, at, t: method.attribute(at, baselines, n_samples=samples, stdevs=noise, target=t),
    )


@register(
    "captumlrp",
    title="LRP (Captum)",
    paper="bach2015",
    formula="Σ_c R_c,  R passed back by the ε rule",
    needs="model",
    at="input",
    cost="2 + 2 (1 + backward) a target",
    deviations=f"{_MODULES}; only the layers that Captum has a rule for",
)
def lrp(scorer: Scorer) -> Maps:
    """Layer-wise relevance propagation: the score, shared out layer by layer by the ε rule.

    ``M = Σ_c R_c``; ``b c *space`` for one picture → ``t *full``; units of the score. [bach2015]

    Raises: MethodError where Captum is not installed, or has no rule for a layer of the model.
    """

    def attribute(method: Any, x: Tensor, t: int) -> Tensor:
        rules = _captum("captum.attr._utils.lrp_rules")
        for module in method.model.modules():
            if isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity):  # Captum has no rule for a change of shape
                module.rule = rules.EpsilonRule()
        return method.attribute(x, target=t)  # type: ignore[no-any-return]

    return _asked(scorer, "LRP", attribute)
