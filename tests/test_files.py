"""Whole or not at all; one name for every input; what strange files look like."""

import errno
import os
import stat
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camlucida.errors import OutputError
from camlucida.files import looks_like, printable, unique_names, write_whole


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def put(file, data=b"new"):
    file.write(data)


def test_a_file_is_written_folders_included_with_the_users_own_permissions(tmp_path):
    path = write_whole(tmp_path / "a" / "b" / "map.png", put)
    assert path == tmp_path / "a" / "b" / "map.png" and path.read_bytes() == b"new"
    assert everything(tmp_path) == {"a", "a/b", "a/b/map.png"}
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), MemoryError(), GeneratorExit()])
def test_a_former_file_survives_whatever_stops_the_writing(fault, tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")

    def stop(file):
        file.write(b"half")
        raise fault

    with pytest.raises(type(fault)) as caught:
        write_whole(path, stop)
    assert caught.value is fault and path.read_bytes() == b"old" and everything(tmp_path) == {"map.png"}


@pytest.mark.parametrize("place", ["write", "os.fsync", "os.replace"])
@pytest.mark.parametrize(("number", "words"), [
    (errno.ENOSPC, "no space left"), (errno.EROFS, "read-only"), (errno.EACCES, "permission"), (errno.EIO, "nput/out"),
])  # fmt: skip
def test_errors_of_the_system_are_told_in_words_and_leave_nothing(place, number, words, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    write = fail if place == "write" else put
    with monkeypatch.context() as patch, pytest.raises(OutputError, match=words):
        if place != "write":
            patch.setattr(f"camlucida.files.{place}", fail)
        write_whole(tmp_path / "map.png", write)
    assert everything(tmp_path) == set()


def test_the_data_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr("camlucida.files.os.fsync", lambda handle: (order.append("sync"), fsync(handle)))
    monkeypatch.setattr("camlucida.files.os.replace", lambda *pair: (order.append("name"), replace(*pair)))

    def look(file):
        file.write(b"new")
        (hidden,) = everything(tmp_path)
        assert hidden.startswith(".") and hidden.endswith(".part")

    write_whole(tmp_path / "map.png", look)
    assert order[:2] == ["sync", "name"]


def test_folders_and_files_in_the_way_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    for path, words in (
        ("folder", "is a folder"), ("file/map.png", "a file is where a folder should be"),
        ("file/deep/map.png", "a file is where a folder should be"), ("x" * 300, "too long"), ("a\0b", "NUL"),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=words) as caught:
            write_whole(tmp_path / path, put)
        assert str(caught.value).isprintable()
    assert everything(tmp_path) == {"folder", "file"} and (tmp_path / "file").read_bytes() == b"mine"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "input").write_bytes(b"mine")
    for name, target in (("link", "input"), ("dangling", "nowhere"), ("folder", ".")):
        (tmp_path / name).symlink_to(target)
        assert write_whole(tmp_path / name, put).read_bytes() == b"new"
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "input").read_bytes() == b"mine" and "nowhere" not in everything(tmp_path)


# -------------------------------------------------------------------------------------------------------------- names
def names(*sources: str, suffix: str = ".png") -> list[str]:
    return [path.name for path in unique_names(sources, suffix, "out")]


def folded(name: str) -> str:
    """As the most forgetful file system sees it: neither case nor accents' encoding count."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def check(sources: list[str], suffix: str = ".png") -> list[str]:
    made = names(*sources, suffix=suffix)
    assert len(made) == len(sources) == len({folded(name) for name in made})
    for name in made:
        assert name.endswith(suffix) and len(name.encode()) <= 255 and name.isprintable()
        assert not set(name) & set('/\\:*?"<>|') and name[0] not in "-. "[:2] and name not in ("", ".", "..")
    assert made == names(*sources, suffix=suffix)
    return made


def test_names_stay_readable_where_nothing_clashes():
    assert names("in/photo.jpg", "in/my cat.tar.gz", "日本.png", "README") == [
        "photo.png", "my cat.tar.png", "日本.png", "README.png"]  # fmt: skip
    assert unique_names(["a.jpg"], "-cam.png", "out/maps") == [Path("out/maps/a-cam.png")]
    assert names() == []


@pytest.mark.parametrize("sources", [
    ["x/a.jpg", "y/a.jpg"], ["a.jpg", "a.png", "a"], ["Cat.jpg", "cat.jpg", "CAT.JPG"], ["é.jpg", "e\u0301.jpg"],
    ["straße.jpg", "STRASSE.jpg"], ["ﬁ.jpg", "fi.jpg"], ["a.jpg"] * 70, ["a" * 300 + "1", "a" * 300],
    ["a:b", "a*b", "a?b", "a_b"], ["", "..", "/", ".", "...", "picture.jpg"], ["a\udcff", "a\udcfe"],
    ["-rf", ".rf", "_rf"], ["CON.jpg", "con", "nul.txt", "LPT1"], ["a.", "a ", "a"], ["é" * 200],
    ["a\n.jpg", "a\x1b[31m.jpg", "\u202egpj.exe"],
])  # fmt: skip
def test_every_input_has_a_safe_name_of_its_own(sources):
    check(sources)
    assert dict(zip(sources, check(sources), strict=True)).keys() == {*sources}
    if len({*sources}) == len(sources):  # the order changes nothing
        assert [*reversed(check(sources[::-1]))] == check(sources)


def test_a_name_that_looks_like_a_mark_does_not_clash_with_one():
    first, second = check(["x/a.jpg", "y/a.jpg"])
    made = check(["x/a.jpg", "y/a.jpg", first, second.upper()])
    assert made[2:] == [first, f"{second[:-4].upper()}.png"]


def test_names_do_not_depend_on_the_disk(tmp_path, monkeypatch):
    before = unique_names(["a.jpg", "b.jpg"], ".png", tmp_path)
    (tmp_path / "a.png").touch()
    assert unique_names(["a.jpg", "b.jpg"], ".png", tmp_path) == before


ODD = st.text(st.sampled_from("aA.-_ /\\\n\x00é\u0301ßſ:\udcff日\u202e") | st.characters(), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(ODD | st.sampled_from(["a" * 250, "A" * 260, "é" * 130]), max_size=8))
def test_names_are_a_bijection_for_any_input(sources):
    check(sources)


@pytest.mark.parametrize("suffix", ["/x.png", "\\x", ".\0", ".\n", "." + "x" * 200])
def test_a_suffix_cannot_lead_elsewhere(suffix):
    with pytest.raises(OutputError):
        unique_names(["a"], suffix, "out")


# -------------------------------------------------------------------------------------------------------------- words
def test_strange_files_are_told_apart():
    for head, words in (
        (b"", "empty"), (b"\xef\xbb\xbf\n<HTML>", "HTML"), (b"<?xml version='1.0'?><svg>", "SVG"), (b"<?xml?>", "XML"),
        (b"PK\x03\x04" + bytes(9), "ZIP"), (b"%PDF-1.7", "PDF"), (b"%!PS-Adobe", "EPS"), (b"8BPS\0\1", "Photoshop"),
        (b"version https://git-lfs.github.com/", "git lfs pull"), (b"\x80\x04\x95", "pickle"), (b"words", "text"),
        (bytes(range(128, 255)), "unknown"), (b"\x93NUMPY", "NumPy"), (b"\0\0\1\0\1\0", "icon"), (b"\x1f\x8b", "gzip"),
    ):  # fmt: skip
        assert words in looks_like(head)


@given(st.text())
def test_printable_is_printable_and_leaves_plain_text_alone(text):
    assert printable(text).isprintable()
    assert not text.isprintable() or printable(text) == text
