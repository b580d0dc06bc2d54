"""Models that the transformers library reads, from the hub or a folder: names taken apart, weights, and what fails."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from camlucida.errors import ModelError
from camlucida.files import printable

_NAME = re.compile(r"(?P<place>[^@\0]+?)(?:@(?P<revision>[\w./-]{1,200}))?(?P<trust>(?:\+code|\+pickle)*)")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[\w.-]{1,96})?", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """A name taken apart: where the model is, of which revision, and what its user insists on.

    ``source`` is what stood before the name, as ``hf/``.
    """

    source: str
    place: str
    revision: str
    code: bool
    pickle: bool

    @property
    def where(self) -> dict[str, Any]:
        """What every loader of transformers is told."""
        return {"trust_remote_code": self.code} | ({"revision": self.revision} if self.revision else {})


def asked(name: str, source: str) -> Asked:
    """What follows ``source`` in a model's name, taken apart. Raises: ModelError where it can be no name.

    >>> asked("someone/net@v2+code", "hf/")
    Asked(source='hf/', place='someone/net', revision='v2', code=True, pickle=False)
    """
    found = _NAME.fullmatch(name)
    place = str(Path(found["place"]).expanduser()) if found else ""
    if found is None or not (Path(place).is_dir() or _HUB.fullmatch(found["place"])):
        raise ModelError(
            f"'{printable(name[:200])}' is neither a folder here nor a name of the hub, such as "
            "google/vit-base-patch16-224."
        )
    trust = found["trust"]
    return Asked(source, place, found["revision"] or "", "+code" in trust, "+pickle" in trust)


@contextmanager
def told(of: Asked) -> Iterator[None]:
    """Whatever transformers and the hub's client raise, as one line that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except Exception as fault:  # they have dozens of errors, and the network its own
        said, shown = " ".join(str(fault).split()), printable(of.place)
        why = _unfit(shown) if isinstance(fault, ImportError) else _reason(said, shown, of.source)
        raise ModelError(f"{why} ({type(fault).__name__}: {printable(said[:160])})") from fault


def _unfit(shown: str) -> str:
    return (
        f"transformers cannot build '{shown}' as it is installed: a library that it needs is missing, or torchvision "
        "does not fit torch (install the two versions that belong together, or no torchvision)"
    )


def _reason(said: str, shown: str, source: str) -> str:
    why = insist = ""
    if "trust_remote_code" in said or "custom code" in said:
        why, insist = "comes with Python code of its own, which would run here", "code if you trust it"
    elif "safetensors" in said:
        why, insist = "has its weights as pickles, not as safetensors", "pickle if you trust its maker"
    if insist:
        return f"'{shown}' {why}: {source}{shown}+{insist}"
    if Path(shown).is_dir():
        return f"the folder '{shown}' holds no model that can be read: transformers' save_pretrained writes one"
    kept = f"the network is needed once, then it is kept; or name a folder, {source}./FOLDER"
    return f"'{shown}' could not be fetched: {kept}"


def pretrained(loader: Any, of: Asked, partial: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """The net with its weights, all of them: transformers itself would go on with a head drawn at random.

    Raises: ModelError where some are missing, unless ``partial``.
    """
    safe = {} if of.pickle else {"use_safetensors": True}
    net, info = loader.from_pretrained(of.place, output_loading_info=True, **safe, **of.where)
    missing = sorted({*info["missing_keys"], *(str(m[0]) for m in info["mismatched_keys"])})
    if missing and not partial:
        raise ModelError(
            f"the weights of '{printable(of.place)}' leave {len(missing)} tensors of {type(net).__name__} as they "
            f"were drawn: {', '.join(missing[:5])}{', …' if missing[5:] else ''}. It was not trained for this; "
            "partial=True (--partial) goes on even so."
        )
    origin = f"pretrained weights {printable(of.place)}{'@' if of.revision else ''}{printable(of.revision)}"
    return net, (origin, *([f"partial: {len(missing)} tensors left as they were drawn"] if missing else []))
