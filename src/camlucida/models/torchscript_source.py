"""TorchScript programs, ``torchscript:FILE``: black boxes, for the methods that ask for answers alone.

A program's own code runs here, so that naming one is a matter of trust. It can run no Python, and one that calls the
operators of PyTorch which read or write files is refused unread; but nothing bounds what time and memory it takes.
"""

import re
import zipfile
from pathlib import Path

import torch

from camlucida.errors import ModelError
from camlucida.files import printable
from camlucida.frame import IMAGENET
from camlucida.models import Model, sniff

FORM = "torchscript:FILE"
ASSUMED = "the file does not say how pictures are made ready: as for ImageNet, {}×{}, unless preprocess= says it"
"""What is noted where a file says nothing of how pictures are made ready."""

# Every operator of PyTorch and torchvision that takes the name of a file. The bare word is what counts, for comments
# and breaks of lines can stand on either side of it; before a colon it declares an attribute.
_FILES = re.compile(rb"\b(save|from_file|read_file|write_file)\b(?!\s*:)")
_MOST = 64_000_000  # bytes of code, unpacked


def build(path: str, weights: str | None, partial: bool) -> Model:  # noqa: ARG001
    """The program in a file that ``torch.jit.save`` wrote.

    Raises: ModelError where it is no such file, damaged, or touches files.

    >>> build("nowhere.pt", None, False)
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: there is no file 'nowhere.pt'.
    """
    if weights is not None:
        raise ModelError("torchscript:FILE has its weights in the file itself: leave weights= out.")
    file = existing(path)
    _check(file)
    try:
        net = torch.jit.load(str(file), map_location="cpu")
    except Exception as fault:  # damage shows in many ways
        said = printable(" ".join(str(fault).split())[:200])
        raise ModelError(f"cannot load {sniff.name(file)} as TorchScript: {said}") from fault
    return Model(net, IMAGENET, name=f"torchscript:{printable(file.name)}", notes=(ASSUMED.format(*IMAGENET.size),))


def existing(path: str) -> Path:
    """The file of this name. Raises: ModelError where there is none."""
    file = Path(path).expanduser()  # the shell leaves the ~ of torchscript:~/… to us
    if not file.is_file():
        raise ModelError(f"there is no file '{printable(path[:300])}'.")
    return file


def _check(file: Path) -> None:
    """Refuse what is no program, or one whose code names an operator that touches files."""
    try:
        with zipfile.ZipFile(file) as archive:
            # by entry, and whatever the case: PyTorch's reader finds a name of other case, or a second of the same name
            held = [i for i in archive.infolist() if re.search(r"/code/.*\.py$", i.filename, re.I | re.S)]
            small = sum(i.file_size for i in held) <= _MOST
            code = [archive.read(i) for i in held] if small else []
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as fault:
        raise ModelError(f"{sniff.name(file)} is no TorchScript program: torch.jit.save writes one.") from fault
    if not small:
        raise ModelError(f"{sniff.name(file)} unpacks to more than {_MOST / 1e6:g} MB of code: refused.")
    if not code:
        raise ModelError(f"{sniff.name(file)} holds no program; weights alone are weights= of the net they are of.")
    if found := next((m for text in code if (m := _FILES.search(text))), None):
        raise ModelError(
            f"{sniff.name(file)} calls {found[1].decode()}, which reads or writes files: refused. "
            "If you trust its maker, load it in a function of your own, FILE.py:CALLABLE."
        )
