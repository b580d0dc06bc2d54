"""The examples of signals, volumes and video run, and the evidence lies where they say."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_signal_finds_the_odd_beat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hit = runpy.run_path(str(EXAMPLES / "heartbeat.py"))["main"](str(tmp_path / "a" / "signal.png"), steps=40)
    assert hit > 0.6 and "at the odd beat" in capsys.readouterr().out
    with Image.open(tmp_path / "a" / "signal.png") as picture:
        assert picture.width > 900


def test_volume_finds_the_lump_and_writes_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hit = runpy.run_path(str(EXAMPLES / "volume.py"))["main"](str(tmp_path / "a"), steps=25)
    assert hit > 0.6 and "in the lump" in capsys.readouterr().out
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert names >= {"planes.png", "slices.png"} and ("heat.nii.gz" in names) == ("scan.nii.gz" in names)


def test_video_follows_the_ball_that_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hit = runpy.run_path(str(EXAMPLES / "video.py"))["main"](str(tmp_path / "a"), steps=40)
    assert hit > 0.5 and "on the ball that moves" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "a").iterdir()} >= {"frames.png", "film.gif"}
