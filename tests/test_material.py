"""Real weights on real photos, where there are any: the map sits on the object, and two classes on two objects."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl

BULL_MASTIFF, TABBY = 243, 281


@pytest.fixture(scope="module")
def nets(request: pytest.FixtureRequest) -> Any:
    folder: Path = request.getfixturevalue("material") / "weights"
    spec = importlib.util.spec_from_file_location("material_models", folder / "models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def look(nets: Any, name: str) -> cl.Preprocess:
    _, size, mean, std, _ = nets.ZOO[name]
    return cl.Preprocess((size, size), mean=mean, std=std)


def peak(heat: torch.Tensor) -> tuple[int, int]:
    y, x = divmod(int(heat.argmax()), heat.shape[1])
    return x, y


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "xgradcam", "cam"])
def test_dog_and_cat_in_one_photo_lie_in_two_places(nets: Any, material: Path, method: str) -> None:
    net, photo = nets.load("mobilenet_v2"), material / "pictures" / "cat_and_dog.jpg"
    dog, cat = cl.sweep(
        net, photo, targets=[BULL_MASTIFF, TABBY], methods=[method], preprocess=look(nets, "mobilenet_v2")
    )
    assert dog.probability() > 0.5 and dog.status == cat.status == "ok"  # type: ignore[operator]
    (dx, dy), (cx, cy) = peak(dog.heatmap()), peak(cat.heatmap())
    assert 80 < dx < 150 and dy < 90, "the dog sits at the top"
    assert 40 < cx < 190 and cy > 150, "the cat lies at the bottom"


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_maps_hold_more_of_the_pet_than_its_area(nets: Any, material: Path, name: str) -> None:
    folder = material / "localisation"
    told = json.loads((folder / "annotations.json").read_text())
    net, held, area = nets.load(name), [], []
    for one in [i for i in told["images"] if i["file"].startswith("pets")][::15]:
        group = told["imagenet_groups"][one["boxes"][0]["class"]]
        e = cl.explain(net, folder / one["file"], target=cl.top1, preprocess=look(nets, name))
        if e.classes is None or int(e.classes[0]) not in group:
            continue
        mask = Image.open(folder / one["mask"]).resize(e.pictures.image(0).size, Image.Resampling.NEAREST)
        pet, heat = np.asarray(mask) == 255, e.heatmap().numpy()
        held.append(float((heat * pet).sum() / heat.sum()))
        area.append(float((pet & e.seen().numpy()).sum() / e.seen().numpy().sum()))
    assert len(held) >= 8 and np.mean(held) > 1.25 * np.mean(area), (np.mean(held), np.mean(area))
