"""camlucida: where in a picture a vision model's evidence lies, and how far that map can be trusted.

>>> import torch, camlucida as cl
>>> net = torch.nn.Sequential(
...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(),
...     torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10),
... )
>>> cl.explain(net, torch.rand(1, 3, 32, 32), target=3).map.shape
torch.Size([1, 30, 30])
"""

from importlib import import_module
from typing import TYPE_CHECKING

from camlucida.version import __version__ as __version__

if TYPE_CHECKING:
    from camlucida.clips import open_video as open_video
    from camlucida.combine import augmented as augmented
    from camlucida.combine import fuse as fuse
    from camlucida.combine import over_layers as over_layers
    from camlucida.combine import sess as sess
    from camlucida.combine import smooth as smooth
    from camlucida.combine import tiled as tiled
    from camlucida.concepts import Concepts as Concepts
    from camlucida.concepts import factorise as factorise
    from camlucida.core.explain import explain as explain
    from camlucida.core.explain import sweep as sweep
    from camlucida.core.explanation import Explanation as Explanation
    from camlucida.core.explanation import shared_scale as shared_scale
    from camlucida.core.inputs import Inputs as Inputs
    from camlucida.core.layouts import channels_first as channels_first
    from camlucida.core.layouts import channels_last as channels_last
    from camlucida.core.layouts import tokens as tokens
    from camlucida.core.store import load_explanation as load_explanation
    from camlucida.core.supervise import supervised as supervised
    from camlucida.core.targets import against as against
    from camlucida.core.targets import classes as classes
    from camlucida.core.targets import finer as finer
    from camlucida.core.targets import rank as rank
    from camlucida.core.targets import top as top
    from camlucida.core.targets import top1 as top1
    from camlucida.errors import CamlucidaError as CamlucidaError
    from camlucida.frame import Preprocess as Preprocess
    from camlucida.models import list_models as list_models
    from camlucida.models import load as load
    from camlucida.models.zero_shot import zero_shot as zero_shot
    from camlucida.registry import list_methods as list_methods
    from camlucida.tasks.detection import detection as detection
    from camlucida.tasks.generation import answer as answer
    from camlucida.tasks.generation import token_at as token_at
    from camlucida.tasks.numbers import binary as binary
    from camlucida.tasks.numbers import labels as labels
    from camlucida.tasks.numbers import value as value
    from camlucida.tasks.segmentation import region as region
    from camlucida.tasks.similarity import concept as concept
    from camlucida.tasks.similarity import embed as embed
    from camlucida.tasks.similarity import similar as similar
    from camlucida.upsample import guided as guided
    from camlucida.volumes import open_volume as open_volume

_WHERE = {
    "binary": "tasks.numbers",
    "detection": "tasks.detection",
    "labels": "tasks.numbers",
    "region": "tasks.segmentation",
    "value": "tasks.numbers",
    "zero_shot": "models.zero_shot",
    "similar": "tasks.similarity",
    "embed": "tasks.similarity",
    "concept": "tasks.similarity",
    "token_at": "tasks.generation",
    "answer": "tasks.generation",
    "Concepts": "concepts",
    "against": "core.targets",
    "augmented": "combine",
    "finer": "core.targets",
    "fuse": "combine",
    "guided": "upsample",
    "factorise": "concepts",
    "open_video": "clips",
    "open_volume": "volumes",
    "over_layers": "combine",
    "sess": "combine",
    "smooth": "combine",
    "tiled": "combine",
    "Inputs": "core.inputs",
    "explain": "core.explain",
    "sweep": "core.explain",
    "Explanation": "core.explanation",
    "shared_scale": "core.explanation",
    "channels_first": "core.layouts",
    "channels_last": "core.layouts",
    "tokens": "core.layouts",
    "load_explanation": "core.store",
    "supervised": "core.supervise",
    "classes": "core.targets",
    "rank": "core.targets",
    "top": "core.targets",
    "top1": "core.targets",
    "CamlucidaError": "errors",
    "Preprocess": "frame",
    "list_models": "models",
    "load": "models",
    "list_methods": "registry",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    # Rooms open when they are entered: the command line answers --help without waiting for torch.
    if name not in _WHERE:
        raise AttributeError(f"module 'camlucida' has no attribute {name!r}")
    value = getattr(import_module(f"camlucida.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
