"""What a file handed over as weights really is, told from its first bytes before any loader sees it."""

import os
import stat
import zipfile
from pathlib import Path
from typing import Literal

from camlucida.errors import ModelError
from camlucida.files import printable

Kind = Literal["safetensors", "torch"]

_LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors format
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # a pickled magic number, before PyTorch 1.6
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves: run `git lfs pull`"),
    (b"\xff\xd8\xff", "a JPEG picture: pictures are the other argument"),
    (b"\x89PNG", "a PNG picture: pictures are the other argument"),
    (b"GIF8", "a GIF picture: pictures are the other argument"),
    (b"\x89HDF", "an HDF5 file (Keras): convert its arrays to safetensors"),
    (b"\x93NUMPY", "a NumPy array: save the arrays by name with safetensors.numpy.save_file"),
    (b"GGUF", "a GGUF language model"),
    (b"\x1f\x8b", "gzip-compressed: unpack it with `gunzip`"),
    (b"Rar!", "an archive: unpack it first"),
    (b"7z\xbc\xaf", "an archive: unpack it first"),
    (b"{", "JSON text: weights are the .safetensors or .pth file beside it"),
)  # fmt: skip
KNOWN = "weights are a .safetensors file, or a PyTorch file (.pth, .pt) that holds nothing but weights"


def kind(file: Path) -> Kind:
    """How a file of weights can be read, or an error that says what it is instead.

    Raises: ModelError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "w.pth")
    ...     _ = path.write_text("<html>404</html>")
    ...     kind(path)
    Traceback (most recent call last):
        ...
    camlucida.errors.ModelError: cannot load 'w.pth': it is a web page: the download went wrong; fetch the file itself.
    """
    head, size = _head(file)
    if head[8:9] == b"{" and 2 <= (header := int.from_bytes(head[:8], "little")) <= _LONGEST_HEADER:
        if size < 8 + header:
            raise refused(file, cut_off("a safetensors file", size))
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _zip(file, size)
    if head.startswith(_OLD_TORCH):
        return "torch"
    raise refused(file, _other(head, size))


def refused(file: Path, what: str) -> ModelError:
    """The one way in which a file of weights is turned down."""
    return ModelError(f"cannot load {name(file)}: it is {what}.")


def name(file: Path) -> str:
    """The file's own name, in quotes, safe to print."""
    return f"'{printable(file.name)}'"


def cut_off(what: str, size: int) -> str:
    """What is said of a file with its end missing."""
    return f"{what} that is cut off or damaged ({size:,} bytes): fetch or save it again"


def holds_code(file: Path, which: str = "") -> str:
    """What is said of a pickle that is more than weights, with the way out for those who trust its maker."""
    old, new = printable(file.name), printable(file.with_suffix(".safetensors").name)
    return (
        f"a pickle that holds code or Python objects{which}, not only weights, and loading it could run anything; "
        "refused. If you trust its maker, convert it once where that code is installed: "
        f"`import torch, safetensors.torch as st; c = torch.load({old!r}, map_location='cpu', weights_only=False)`, "
        "`st.save_file({k: v.contiguous().clone() for k, v in c['state_dict'].items()}, "
        f"{new!r})` (c.state_dict() where c is a module)"
    )


def _head(file: Path) -> tuple[bytes, int]:
    """The first bytes, and the size, of an ordinary file; anything else is never opened, for a pipe would hang."""
    try:
        info = os.stat(file)
        if stat.S_ISDIR(info.st_mode):
            raise refused(file, f"a folder; name the file in it: {KNOWN}")
        if not stat.S_ISREG(info.st_mode):
            raise refused(file, f"a pipe or a device; {KNOWN}")
        with open(file, "rb") as opened:
            head = opened.read(1024)
    except FileNotFoundError:
        hint = " (random weights are weights='random')"
        raise ModelError(f"there is no weights file '{printable(str(file))}'{hint}.") from None
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        raise ModelError(f"cannot open the weights file {name(file)}: {reason}.") from fault
    if not head:
        raise refused(file, "empty: fetch or save it again")
    return head, info.st_size


def _zip(file: Path, size: int) -> Kind:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise refused(file, cut_off("a PyTorch file or other ZIP archive", size)) from None
    ends = {n.rpartition("/")[2] for n in names}
    if "constants.pkl" in ends or any("/code/" in n for n in names):
        raise refused(
            file,
            "TorchScript, a program and not only weights. If you trust its maker, load it by itself, as "
            "torchscript:FILE, or save the weights alone: "
            "`torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')`",
        )
    if any("/data/weights/" in n or n.endswith("archive_format") for n in names) and "data.pkl" not in ends:
        raise refused(file, "an exported program (.pt2), not only weights: save model.state_dict() instead")
    if "data.pkl" not in ends:
        raise refused(file, f"a ZIP archive, but not of PyTorch; {KNOWN}")
    return "torch"


def _other(head: bytes, size: int) -> str:
    for magic, what in _OTHERS:
        if head.startswith(magic):
            return what
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page: the download went wrong; fetch the file itself"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a plain Python pickle, which can run anything when loaded; refused. Save the weights as safetensors"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":  # a version of the format, then who made it
        return "an ONNX graph and not only weights: load it by itself, as onnx:FILE"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first, or save the weights again with today's PyTorch"
    if not any(head):
        return f"{size:,} bytes that begin with zeros: fetch or save it again"
    return f"nothing that is known here; {KNOWN}"
