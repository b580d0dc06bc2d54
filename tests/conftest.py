"""A strict, seeded world for every test, and the guests that may be absent."""

import importlib
import importlib.util
import os
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def _arm_torchvision() -> None:
    """Where torchvision's compiled operators do not fit torch, a stand-in named by the environment is put in."""
    beside = ROOT.parent / "shared" / "reference" / "torchvision_shim.py"
    path = Path(os.environ.get("CAMLUCIDA_TORCHVISION_SHIM", beside))
    if not path.is_file():
        return
    spec = importlib.util.spec_from_file_location("torchvision_shim", path)
    assert spec is not None and spec.loader is not None
    shim = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shim)
    shim.hook()


_arm_torchvision()
torch.set_num_threads(1)  # tests run side by side


def guest(name: str) -> ModuleType:
    """An optional package, or a skip that says why it is not there."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as problem:
        pytest.skip(f"{name} cannot be imported here: {problem}")


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    return guest("torchvision")


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    return guest("timm")


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = guest("transformers")
    guest("transformers.models.vit.modeling_vit")  # its models fail where torchvision is there but does not fit torch
    return found


@pytest.fixture(scope="session")
def material() -> Path:
    """Real pictures and weights, where CAMLUCIDA_MATERIAL points to them."""
    path = Path(os.environ.get("CAMLUCIDA_MATERIAL", ROOT.parent / "shared" / "material"))
    if not path.is_dir():
        pytest.skip("no real pictures here: set CAMLUCIDA_MATERIAL to the folder that holds them")
    return path


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
