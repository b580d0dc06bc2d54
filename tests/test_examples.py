"""Every example runs, and says what it promises."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_every_example_is_run_here() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == {"shapes.py"}


def test_shapes_learns_draws_and_tells_where_the_picture_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "shapes.py"))["main"](str(tmp_path / "a" / "demo.png"), steps=60)
    told = capsys.readouterr().out
    assert f"the picture: {tmp_path / 'a' / 'demo.png'}" in told and "of 200 times" in told
    with Image.open(tmp_path / "a" / "demo.png") as picture:
        assert picture.width > 3 * 224 and picture.height > 5 * 224
