"""Tables of pictures: from folders and CSV files, held out by lot, read once, with what cannot be read told."""

from pathlib import Path

import drawn
import pytest
import torch
from PIL import Image

from camlucida.errors import InputError
from camlucida.gap import data
from camlucida.gap.data import OTHER, Shelf, Table, read_table


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return drawn.folder(tmp_path / "set", 3)


def table_file(folder: Path, text: str) -> Path:
    file = folder / "table.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_folder_of_folders_is_read_in_alphabetical_order(place: Path) -> None:
    (place / "box" / "deep").mkdir()
    drawn.draw("box", 9).save(place / "box" / "deep" / "z.PNG")
    (place / "box" / "notes.txt").write_text("no picture")
    (place / "box" / ".hidden.png").write_bytes(b"")
    (place / ".git").mkdir()
    table = read_table(place)
    assert table.classes == ("box", "disc", "tent") and table.counts == (4, 3, 3)
    assert table.targets == (0,) * 4 + (1,) * 3 + (2,) * 3
    assert [Path(f).name for f in table.files[:4]] == ["00.png", "01.png", "02.png", "z.PNG"]


def test_the_order_of_given_classes_is_kept_also_where_one_has_no_picture(place: Path) -> None:
    table = read_table(place, classes=("tent", "egg", "disc", "box"))
    assert table.classes == ("tent", "egg", "disc", "box") and table.counts == (3, 0, 3, 3)
    assert table.targets[0] == 3  # a box


def test_a_class_that_is_not_given_is_refused_with_the_nearest(place: Path) -> None:
    with pytest.raises(InputError, match=r"class 'tent' of its own\. Did you mean 'tint'\?"):
        read_table(place, classes=("box", "disc", "tint"))


def test_a_split_is_a_folder_of_class_folders_or_an_error(place: Path, tmp_path: Path) -> None:
    drawn.folder(tmp_path / "both" / "train", 2, ("a", "b"))
    drawn.folder(tmp_path / "both" / "test", 1, ("a", "b"))
    assert len(read_table(tmp_path / "both", "train")) == 4 and len(read_table(tmp_path / "both", "test")) == 2
    with pytest.raises(InputError, match="no folder 'test'"):
        read_table(place, "test")


def test_a_csv_has_splits_and_pictures_of_none_of_the_classes(tmp_path: Path) -> None:
    file = table_file(
        tmp_path, "\ufefffile,class,split\nx/a.png, dog ,train\nb.png,,train\nc.png,cat,test\n,cat,test\n"
    )
    whole = read_table(file)
    assert whole.classes == ("cat", "dog") and whole.targets == (1, OTHER, 0)
    assert whole.files == tuple(str(tmp_path / n) for n in ("x/a.png", "b.png", "c.png"))
    assert read_table(file, "test").targets == (0,)
    assert whole.counts == (1, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,klass\na,b\n", "has no column class, split"),
        ("", "has no column class, file, split"),
        ("file,class,split\na.png,,train\n", r"no picture of any class in split 'train'"),
        ("file,class,split\na.png,cat\n", "no picture of any class"),
    ],
)
def test_a_csv_that_says_nothing_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read_table(table_file(tmp_path, text), "train")


def test_what_is_no_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(InputError, match="cannot be read as a CSV file"):
        read_table(tmp_path / "x.csv")
    with pytest.raises(InputError, match="neither a folder"):
        read_table(tmp_path / "absent\x1b")
    with pytest.raises(InputError, match="holds no picture of any class"):
        read_table(tmp_path)


def test_a_share_of_each_class_is_held_out_by_lot_and_nothing_is_lost() -> None:
    targets = (0,) * 40 + (1,) * 10 + (2,) * 3 + (3,) + (OTHER,) * 20
    table = Table(tuple(map(str, range(len(targets)))), targets, ("a", "b", "c", "d"))
    kept, held = table.hold_out(0.1)
    assert held.counts == (4, 1, 1, 0) and held.targets.count(OTHER) == 2
    assert sorted(map(int, kept.files + held.files)) == list(range(len(table)))
    assert [int(f) for f in kept.files] == sorted(map(int, kept.files))
    assert all(table.targets[int(f)] == t for f, t in zip(held.files, held.targets, strict=True))
    assert table.hold_out(0.1) == (kept, held) and table.hold_out(0.1, seed=1) != (kept, held)
    assert {int(f) for f in held.files[:4]} != {0, 1, 2, 3}
    assert table.hold_out(0.0) == (table, table.take([]))
    assert table.hold_out(0.99)[0].counts == (1, 1, 1, 1)  # one of each stays


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="share to hold out"):
        Table(("a",), (0,), ("x",)).hold_out(share)


def test_a_shelf_keeps_pictures_small_and_tells_what_it_cannot_read(tmp_path: Path) -> None:
    Image.new("RGB", (80, 40), (10, 20, 30)).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "tiny.png")
    (tmp_path / "bad.png").write_text("<html>")
    shelf = Shelf([str(tmp_path / n) for n in ("wide.png", "bad.png", "absent.png", "tiny.png")], side=20)
    assert shelf.sound() == [0, 3] and set(shelf.faults) == {1, 2}
    assert "bad.png" in shelf.faults[1] and "absent.png" in shelf.faults[2]
    tiny, wide, again = shelf.take([3, 0, 3])
    assert wide.shape == (3, 20, 40) and tiny.shape == (3, 6, 8) and again is tiny
    assert wide[:, 0, 0].tolist() == [10, 20, 30] and wide.dtype == torch.uint8
    assert len(shelf.take([1, 0])) == 1
    assert Shelf([str(tmp_path / "wide.png")], 20, channels=1).take([0])[0].shape == (1, 20, 40)


def test_a_full_shelf_reads_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(f) for f in sorted(place.rglob("*.png"))]
    whole, none = Shelf(files, 20), Shelf(files, 20, memory=2 * 3 * 20 * 20 + 5)
    monkeypatch.setattr(data, "_TOGETHER", 4)
    assert whole.sound() == none.sound() == list(range(9))
    assert len(whole.kept) == 9 and len(none.kept) == 2
    for a, b in zip(whole.take(range(9)), none.take(range(9)), strict=True):
        assert torch.equal(a, b)


def test_what_is_hidden_in_a_class_folder_is_passed_over(place: Path) -> None:
    (place / "box" / ".thumbs" / "small").mkdir(parents=True)
    drawn.draw("box", 9).save(place / "box" / ".thumbs" / "small" / "a.png")
    (place / "box" / "loop").symlink_to(place / "box")
    (place / "empty").mkdir()
    assert read_table(place).counts == (3, 3, 3)


def test_spaces_around_the_cells_of_a_csv_say_nothing(tmp_path: Path) -> None:
    file = table_file(
        tmp_path, "file, class, split\r\n a.png , cat , train \r\n\r\nb.png,dog,train\r\nc.png,dog,test\r\n"
    )
    table = read_table(file, "train")
    assert table == Table((str(tmp_path / "a.png"), str(tmp_path / "b.png")), (0, 1), ("cat", "dog"))


def test_a_row_that_stands_twice_counts_once_and_one_picture_has_one_class(tmp_path: Path) -> None:
    twice = "file,class,split\na.png,cat,x\nb.png,dog,x\n./a.png,cat,x\na.png,dog,y\n"
    assert len(read_table(table_file(tmp_path, twice), "x")) == 2
    with pytest.raises(InputError, match=r"the picture 'a\.png' as 'cat' and as 'dog'"):
        read_table(table_file(tmp_path, twice))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file;class\na.png;cat\n", "separated by commas"),
        ("file,class\nx,y.png,cat\n", "a row of 3 columns, not 2: x,y.png,cat"),
        ('file,class\n"a.png,cat\nb.png,dog\n', "cannot be read as a CSV file"),
    ],
)
def test_a_csv_of_another_kind_is_refused_and_not_guessed(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read_table(table_file(tmp_path, text))


def test_given_classes_must_be_told_apart_and_may_have_no_picture_at_all(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'disc' is the name of 2 classes"):
        read_table(place, classes=("box", "disc", "disc", "tent"))
    file = table_file(tmp_path, "file,class,split\na.png,,x\n")
    assert read_table(file, classes=("cat", "dog")).targets == (OTHER,)
    with pytest.raises(InputError, match="no picture of any class in split 'y'"):
        read_table(file, "y", classes=("cat", "dog"))


def test_a_picture_held_out_of_one_table_is_held_out_of_a_shorter_one_elsewhere() -> None:
    names = [f"{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(40)]
    whole = Table(tuple(f"/a/{n}" for n in names), (0,) * 40 + (1,) * 40, ("cat", "dog"))
    cats = Table(tuple(f"/b/c/{n}" for n in reversed(names[:40])), (0,) * 40, ("cat",))
    one, two = ({Path(f).name for f in t.hold_out(0.2)[1].files if "cat" in f} for t in (whole, cats))
    assert one == two and len(one) == 8
