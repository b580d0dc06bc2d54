"""Files: written whole or not at all, one output name for every input, and words for what a strange one looks like."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from camlucida.errors import OutputError

_REASONS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
}
_MAGIC = (
    (b"%PDF", "PDF"), (b"%!PS", "EPS or PostScript"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"PK\x03\x04", "a ZIP archive"),
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"), (b"8BPS", "Photoshop"),
    (b"\x1f\x8b", "gzip"), (b"SIMPLE  =", "FITS"), (b"\0\0\1\0", "a Windows icon"), (b"\x80\2", "a Python pickle"),
    (b"\x80\4", "a Python pickle"), (b"\x93NUMPY", "a NumPy array file"), (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL", "JPEG XL"),
)  # fmt: skip
_MARKUP = ((b"<svg", "SVG"), (b"<html", "HTML"), (b"<!doctype html", "HTML"), (b"<?xml", "XML"))
_LONGEST = 255  # bytes of one name, on all common file systems
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], None]) -> Path:
    """Write a file so that it is there whole or not at all: a temporary neighbour, synced to disk, then renamed.

    ``write`` gets the open binary file. Folders above ``path`` are made. A link at ``path`` is replaced, not followed.
    Whatever stops the writing, Ctrl-C included, the neighbour is removed and a former file stays as it was; after a
    ``kill -9`` a file ``.camlucida-….part`` may be left.

    Raises:
        OutputError: the file cannot be written, with the reason. Other errors of ``write`` pass as they are.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "maps", "cat.txt"), lambda file: None).name
    'cat.txt'
    """
    path = Path(path)
    with _told(path):
        if path.is_dir() and not path.is_symlink():
            raise OutputError(f"cannot write {printable(str(path))}: it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.parent / f".camlucida-{secrets.token_hex(8)}.part"
        try:
            _write_and_sync(part, write)
            os.replace(part, path)
        finally:  # after the rename there is nothing left to remove
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return path


def unique_names(sources: Sequence[str], suffix: str, within: str | os.PathLike[str]) -> list[Path]:
    """One output path in ``within`` for each source, in order; no two alike, even where case or accents do not count.

    ``photo.jpg`` gives ``photo`` + suffix. Sources that would meet (``a.jpg`` and ``a.png``, ``x/a.jpg`` and
    ``y/a.jpg``, ``A.jpg`` and ``a.jpg``) all get a hash of their full name, as have names cut to 255 bytes. The
    result depends on ``sources`` alone, never on what is on the disk.

    Raises:
        OutputError: the suffix holds a separator or control character, or is too long.

    >>> [path.name for path in unique_names(["x/cat.jpg", "x/dog.jpg", "y/dog.jpg", ".."], ".png", "out")]
    ['cat.png', 'dog-de4582cc.png', 'dog-e7263824.png', 'picture.png']
    """
    if re.search(r"[/\\\x00-\x1f\x7f]", suffix) or len(suffix.encode("utf-8", "replace")) > 100:
        raise OutputError(f"{suffix!r} cannot end a file name")
    names = [_fitted(_stem(source), source, suffix) for source in sources]
    wanted, seen, taken = Counter(map(_key, names)), Counter[str](), {*map(_key, names)}
    for i, source in enumerate(sources):
        seen[source] += 1
        if wanted[_key(names[i])] > 1:
            names[i] = next(name for name in _marked(source, suffix, seen[source]) if _key(name) not in taken)
            taken.add(_key(names[i]))
    return [Path(within) / name for name in names]


def printable(text: str) -> str:
    r"""Control characters, text-direction marks and lone surrogates as escapes: safe for terminals and logs.

    >>> print(printable("a\x1b[31m.png"))
    a\x1b[31m.png
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def looks_like(head: bytes) -> str:
    """What a file seems to be, from its first few hundred bytes, in words for an error message.

    >>> looks_like(b"<!DOCTYPE html>"), looks_like(b"")
    ('looks like HTML', 'empty')
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return f"looks like {kind}"
    for words, kind in _MARKUP:
        if words in text:
            return f"looks like {kind}"
    return "looks like text" if text and all(32 <= c < 127 or c in b"\t\r\n" for c in head) else "unknown kind of file"


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as fault:
        reason = _REASONS.get(fault.errno or 0, fault.strerror or str(fault))
        raise OutputError(f"cannot write {printable(str(path))}: {reason}") from fault
    except ValueError as fault:
        if "null" in str(fault):
            raise OutputError(f"cannot write {printable(str(path))}: the name holds a NUL character") from fault
        raise


def _write_and_sync(path: Path, write: Callable[[BinaryIO], None]) -> None:
    with open(path, "xb") as file:  # x: never through a link someone put there; and the user's own umask applies
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; where folders cannot be synced (Windows, network drives) it is done anyway."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _stem(source: str) -> str:
    """The readable part of a name, safe on any file system and as a word of a command line."""
    last = re.split(r"[/\\]", source.rstrip("/\\"))[-1]
    whole = last[:-3] if last.lower().endswith(".nii.gz") else last
    stem = os.path.splitext(whole)[0] if last.strip(".") else ""
    stem = unicodedata.normalize("NFC", "".join(map(_safe, stem)))
    stem = re.sub(r"^[-.]", "_", stem).rstrip(". ") or "picture"
    return f"_{stem}" if stem.split(".")[0].lower() in _RESERVED else stem


def _safe(character: str) -> str:
    # not printable: control characters, direction marks, line breaks, what is left of bytes that are not UTF-8
    return character if character.isprintable() and character not in '<>:"|?*' else "_"


def _fitted(stem: str, source: str, suffix: str) -> str:
    fits = len((stem + suffix).encode()) <= _LONGEST
    return stem + suffix if fits else next(_marked(source, suffix, 1))


def _marked(source: str, suffix: str, times: int) -> Iterator[str]:
    """Names with a hash of the whole source, longer and longer: the first that is free is taken."""
    digest = hashlib.sha256(f"{times}:{source}".encode("utf-8", "surrogatepass")).hexdigest()
    for length in range(8, len(digest) + 1):
        end = f"-{digest[:length]}{suffix}"
        stem = _stem(source).encode()[: _LONGEST - len(end.encode())].decode("utf-8", "ignore")
        yield stem + end


def _key(name: str) -> str:
    """Equal for names that some file system takes for the same: case, accents, and width do not count."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
