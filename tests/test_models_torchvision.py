"""Models of torchvision: its weights' transforms and categories, fine-tuned files, and what to do without it."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import camlucida as cl
from camlucida.errors import InputError, ModelError
from camlucida.models import torchvision_source


def test_random_weights_come_with_transform_and_categories(torchvision: ModuleType) -> None:
    model = cl.load("torchvision/squeezenet1_1", "random")
    assert model.notes == ("random initialisation: the net has learnt nothing",)
    assert model.name == "torchvision/squeezenet1_1" and not model.training
    assert model.labels[1] == "goldfish" and len(model.labels) == 1000


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_b_16.IMAGENET1K_SWAG_LINEAR_V1"])
def test_pictures_are_prepared_as_torchvision_does(name: str, torchvision: ModuleType) -> None:
    known, _, tag = name.partition(".")
    chosen = torchvision_source._chosen(torchvision_source._torchvision(), known, tag)
    prepare, _ = torchvision_source._preprocess(chosen, guessed=False)
    pixels = np.random.default_rng(0).integers(0, 256, (270, 400, 3), dtype=np.uint8)
    for picture in (Image.fromarray(pixels), Image.fromarray(pixels).rotate(90, expand=True)):
        assert torch.allclose(prepare(picture)[0], chosen.transforms()(picture), atol=1e-4)


def test_a_file_with_its_own_number_of_classes_loads(torchvision: ModuleType, tmp_path: Path) -> None:
    net = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=7).eval()
    save_file({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
    model = cl.load("torchvision/shufflenet_v2_x0_5", tmp_path / "w.safetensors")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(x), net(x)) and model(x).shape == (1, 7) and model.labels == ()
    assert model.notes[-1] == "pictures prepared as for torchvision's IMAGENET1K_V1"


def test_a_thousand_classes_from_a_file_are_said_to_be_a_guess(torchvision: ModuleType, tmp_path: Path) -> None:
    save_file(torchvision.models.get_model("squeezenet1_1").state_dict(), tmp_path / "w.safetensors")
    model = cl.load("torchvision/squeezenet1_1", tmp_path / "w.safetensors")
    assert "1,000 classes: taken to be those of IMAGENET1K_V1" in model.notes and model.labels[1] == "goldfish"


@pytest.mark.filterwarnings("ignore:The default weight init:FutureWarning")
def test_a_file_turns_on_what_pretrained_weights_turn_on(torchvision: ModuleType) -> None:
    net = torchvision.models.GoogLeNet(num_classes=3, aux_logits=False, init_weights=False)
    assert not net.transform_input
    assert "transform_input is on" in torchvision_source._as_pretrained(net)[0] and net.transform_input
    assert torchvision_source._as_pretrained(net) == ()


def test_a_segmenter_loads_without_fetching_its_backbone(
    torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", fetched)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetched)
    model = cl.load("torchvision/lraspp_mobilenet_v3_large", "random")
    assert model.labels[8] == "cat" and model(torch.rand(1, 3, 64, 64))["out"].shape == (1, 21, 64, 64)
    x, frame = model.preprocess(Image.new("RGB", (200, 100)))
    assert x.shape == (3, 520, 1040) and frame.covers_all  # its transform keeps the aspect


def test_a_video_model_takes_ready_clips(torchvision: ModuleType) -> None:
    model = cl.load("torchvision/mc3_18", "random")
    assert len(model.labels) == 400 and model(torch.rand(1, 3, 4, 32, 32)).shape == (1, 400)
    with pytest.raises(InputError, match=r"fails on a picture.*ready batch"):
        cl.explain(model, Image.new("RGB", (60, 40)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet19", r"torchvision has no model 'resnet19'\. Did you mean 'resnet18'"),
        ("resnet18.nope", r"torchvision has no weights 'resnet18\.nope'\. Known: 'IMAGENET1K_V1'"),
        ("resnet18;import os", "is no plain name of torchvision's registry"),
        ("", "is no plain name of torchvision's registry"),
    ],
)
def test_names_that_torchvision_does_not_know(name: str, expected: str, torchvision: ModuleType) -> None:
    with pytest.raises(ModelError, match=expected):
        cl.load(f"torchvision/{name}")


def test_a_network_that_cannot_be_reached_is_explained(
    torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(ModelError, match=r"could not be fetched \(OSError: no network\): the network is needed once"):
        cl.load("torchvision/resnet18")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (ModuleNotFoundError("no", name="torchvision"), r"needs torchvision: pip install camlucida\[torchvision\]"),
        (RuntimeError("operator torchvision::nms does not exist"), "does not fit the installed torch"),
        (ImportError("cannot import name 'x'"), "does not fit the installed torch"),
    ],
)
def test_torchvision_that_cannot_be_imported_is_explained(
    fault: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name.partition(".")[0] == "torchvision":
                raise fault

    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    for ask in (lambda: cl.load("torchvision/resnet18", "random"), torchvision_source.names):
        with pytest.raises(ModelError, match=expected):
            ask()


def test_names_are_those_of_the_registry(torchvision: ModuleType) -> None:
    assert {"resnet50", "fcn_resnet50", "r3d_18"} <= set(torchvision_source.names())
