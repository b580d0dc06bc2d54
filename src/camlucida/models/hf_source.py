"""Models of the transformers library: ``hf/google/vit-base-patch16-224`` of the hub, or a folder, ``hf/./my-model``.

What can run code is refused unless it is named: ``+code`` at the end lets the Python files of a repository run, and
``+pickle`` takes weights that are no safetensors (PyTorch's weights-only reader reads them, even so). ``@revision``
picks a branch, tag or commit: ``hf/microsoft/resnet-50@refs/pr/4``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from camlucida.errors import ModelError, did_you_mean
from camlucida.files import printable
from camlucida.frame import Preprocess
from camlucida.models import Model, hub
from camlucida.models.guests import imported
from camlucida.models.hub import Asked
from camlucida.models.measure import Untold, measured
from camlucida.models.weights import fit, open_weights

FORM = "hf/NAME"

_TASKS = ("ImageClassification", "SemanticSegmentation", "ObjectDetection")


def build(name: str, weights: str | None, partial: bool) -> Model:
    """The model called ``name`` on the hub or in a folder, with its weights, random ones, or those of a file.

    ``weights="random"`` also takes a kind of model alone, such as ``hf/vit``, at its usual size.

    Raises: ModelError where there is no such model, it is of another task, or its weights do not fill it.

    >>> build("a/b/c", None, False)
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: 'a/b/c' is neither a folder here nor a name of the hub, such as \
google/vit-base-patch16-224.
    """
    asked = hub.asked(name, "hf/")
    held = None if weights in (None, "random") else open_weights(str(weights))
    library = transformers(asked.source)
    kind = asked.place if asked.place in kinds(library) and not Path(asked.place).is_dir() else ""
    if kind and weights is None:
        raise ModelError(
            f"'{kind}' is a kind of model and not a trained one: name one of the hub, such as "
            "google/vit-base-patch16-224, or pass weights='random'."
        )
    with hub.told(asked):
        auto = library.AutoConfig
        config = auto.for_model(kind) if kind else auto.from_pretrained(asked.place, **asked.where)
        config.architectures = config.architectures or []
        loader = _loader(library, config, asked)
        if weights is None:
            net, notes = hub.pretrained(loader, asked, partial)
        else:
            net = loader.from_config(config, trust_remote_code=asked.code)
            notes = ("random initialisation: the net has learnt nothing",)
    if held:
        notes = (*held.notes, *fit(net, held.state, partial))
    return Model(
        net.float(), preprocess(library, asked, config, kind), name=f"hf/{printable(name)}", labels=_labels(config),
        notes=notes,
    )  # fmt: skip


def names() -> Iterable[str]:
    """The names on the hub whose files are kept on this machine, and the kinds of model, to be had at random.

    Raises: ModelError where transformers cannot be imported.
    """
    library = transformers("hf/")
    return [*_kept(), *kinds(library)]


def kinds(library: ModuleType) -> list[str]:
    """The kinds of image classifier, by transformers' own names for them."""
    auto = library.models.auto.modeling_auto
    return sorted(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def _kept() -> list[str]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return sorted(r.repo_id for r in repos if r.repo_type == "model")


# ------------------------------------------------------------------------------------------------------ the library


def transformers(source: str) -> ModuleType:
    """The library, for models whose names begin with ``source``. Raises: ModelError where it cannot be imported."""
    with imported("transformers", f"{source}…", "hf", "install versions that belong together"):
        import transformers as library
        import transformers.models.auto.modeling_auto
    return library


# --------------------------------------------------------------------------------------------------------- the task


def _loader(library: ModuleType, config: Any, asked: Asked) -> Any:
    """The automatic class of the task that the configuration was saved for, else of the first that it can do."""
    auto = [getattr(library, f"AutoModelFor{task}") for task in _TASKS]
    own = getattr(config, "auto_map", None) or {}
    if found := next((a for a in auto if a.__name__ in own), None):
        return found
    able = [a for a in auto if type(config) in a._model_mapping]
    if not able:
        raise ModelError(
            f"'{printable(asked.place)}' is of kind {printable(str(config.model_type))!r}, which classifies, segments "
            f"or detects nothing in pictures.{did_you_mean(str(config.model_type), kinds(library))}"
        )
    return next((a for a in able if _classes(a, config) & set(config.architectures)), able[0])


def _classes(auto: Any, config: Any) -> set[str]:
    found = auto._model_mapping[type(config)]
    return {c.__name__ for c in (found if isinstance(found, tuple | list) else (found,))}


# ---------------------------------------------------------------------------------------------- pictures and labels


def preprocess(library: ModuleType, asked: Asked, config: Any, kind: str = "") -> Preprocess:
    """What the model's own processor does to a picture; one that refuses pictures where there is none."""
    try:
        processor = _processor(library, asked, config, kind)
    except Exception as fault:  # none was saved beside the weights, or it needs what is not installed
        said = " ".join(str(fault).split())[:160]
        return _without(config, f"its processor cannot be had ({type(fault).__name__}: {printable(said)})")
    return measured(lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0])


def _processor(library: ModuleType, asked: Asked, config: Any, kind: str) -> Any:
    if kind:
        found = library.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING[type(config)]
        by = found if isinstance(found, dict) else {"pil": found[0]}
        return (by.get("pil") or by["torchvision"])()
    return library.AutoImageProcessor.from_pretrained(asked.place, backend="pil", **asked.where)


def _without(config: Any, why: str) -> Untold:
    side = getattr(config, "image_size", 224)
    size = (side, side) if isinstance(side, int) else tuple(side)
    return Untold(size, (0.5,) * 3, (0.5,) * 3, why=why)


def _labels(config: Any) -> tuple[str, ...]:
    own: Mapping[Any, Any] = getattr(config, "id2label", None) or {}
    known = {int(i): str(text) for i, text in own.items()}
    drawn = {i: f"LABEL_{i}" for i in known}
    return () if known == drawn else tuple(known.get(i, f"class {i}") for i in range(max(known, default=-1) + 1))
