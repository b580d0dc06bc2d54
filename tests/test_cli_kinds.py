"""The command line, given a video, a volume or a signal."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import guest
from PIL import Image
from typer.testing import CliRunner, Result

import camlucida as cl
from camlucida.cli.app import app
from camlucida.clips import open_video, write_gif

NETS = """
import torch
from torch import nn
from camlucida.frame import Preprocess

def net(conv, pool, channels):
    torch.manual_seed(1)
    made = nn.Sequential(conv(channels, 8, 3, padding=1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(8, 6))
    made.preprocess = Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3)
    return made

def signal():
    return net(nn.Conv1d, nn.AdaptiveAvgPool1d, 2)

def volume():
    return net(nn.Conv3d, nn.AdaptiveAvgPool3d, 1)

def video():
    return net(nn.Conv3d, nn.AdaptiveAvgPool3d, 3)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("beat.npy", rng.random((2, 90)))
    np.save("scan.npy", rng.random((8, 9, 10)))
    with Path("clip.gif").open("wb") as out:
        write_gif([Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)) for _ in range(18)], 10.0, out)
    return tmp_path


def explain(*words: str) -> Result:
    return CliRunner().invoke(app, ["explain", *words, "--target", "2", "-o", "out"])


@pytest.mark.parametrize("file, net", [("beat.npy", "signal"), ("scan.npy", "volume"), ("clip.gif", "video")])
def test_every_kind_gets_the_panel_that_belongs_to_it(file: str, net: str) -> None:
    result = explain(file, "--model", f"nets.py:{net}", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["picture"] == file and record["outputs"] == [f"out/{file[:4]}.png"]
    e = cl.explain(cl.load(f"nets.py:{net}"), file, target=2)
    with Image.open(f"out/{file[:4]}.png") as page:
        assert np.array_equal(np.asarray(page), np.asarray(e.panel()))


def test_several_methods_stand_beneath_each_other() -> None:
    assert explain("scan.npy", "--model", "nets.py:volume", "--method", "gradcam,layercam").exit_code == 0
    with Image.open("out/scan.png") as page:
        single = cl.explain(cl.load("nets.py:volume"), "scan.npy", target=2).panel()
        assert page.width == single.width and page.height == 2 * single.height


def test_films_and_maps_on_the_scan_s_own_grid_are_written() -> None:
    assert explain("clip.gif", "--model", "nets.py:video", "--format", "gif").exit_code == 0
    assert open_video("out/clip.gif").total == 16
    nibabel = guest("nibabel")
    data, affine = np.random.default_rng(0).random((8, 9, 10)), np.diag([-1.0, 2, 3, 1])
    nibabel.Nifti1Image(data, affine).to_filename("head.nii.gz")
    assert explain("head.nii.gz", "--model", "nets.py:volume", "--format", "nifti").exit_code == 0
    made = nibabel.load("out/head.nii.gz")
    assert made.shape == (8, 9, 10) and np.array_equal(made.affine, affine)


def test_a_file_that_does_not_fit_the_model_is_told() -> None:
    result = explain("scan.npy", "--model", "nets.py:signal")
    assert result.exit_code != 0 and "scan.npy holds an array (8, 9, 10), and not a signal" in result.stderr
    assert explain("beat.npy", "--model", "nets.py:signal", "--format", "gif").exit_code != 0
