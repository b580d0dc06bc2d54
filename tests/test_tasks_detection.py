"""Detections: the same thing found in every form of answer, scored as a loop scores it, refused where it is none."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from replicas import apart
from spots import CELL, FORMS, Spots, scene
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import InputError, TargetError
from camlucida.tasks.boxes import Beside

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RED, BLUE = (1, 2), (4, 5)
every_form = pytest.mark.parametrize("form", FORMS)


def ask(form: str, **more: Any) -> Any:
    return cl.detection(**more, nothing={"softmax queries": True, "sigmoid queries": False}.get(form))


def box_of(cell: tuple[int, int]) -> list[float]:
    row, column = cell
    return [(column - 0.5) * CELL, (row - 0.5) * CELL, (column + 1.5) * CELL, (row + 1.5) * CELL]


def peak(map: Tensor) -> tuple[int, int]:
    return divmod(int(map.argmax()), map.shape[1])


# ------------------------------------------------------------------------------------------------------ what is found


@every_form
@pytest.mark.parametrize(("index", "k", "cell"), [(0, 0, RED), (1, 1, BLUE)])
def test_each_detection_of_every_form_is_mapped_to_its_own_place(
    form: str, index: int, k: int, cell: tuple[int, int]
) -> None:
    net = Spots(form)
    e = cl.explain(net, scene(), target=ask(form, index=index), method="hirescam")
    assert e.layer == "features" and tuple(e.map.shape) == (1, 6, 8)
    assert int(e.classes[0]) == k and peak(e.map[0]) == cell and e.status == "ok"
    assert e.where == (f"in the box {', '.join(f'{v:.0f}' for v in box_of(cell))}",)
    assert e.probability() == pytest.approx(float(e.scores[0])) and 0.5 < float(e.scores[0]) < 1
    elsewhere = e.map[0].clone()
    elsewhere[max(cell[0] - 1, 0) : cell[0] + 2, cell[1] - 1 : cell[1] + 2] = 0
    assert elsewhere.abs().max() == 0  # the other square is none of its evidence


@every_form
def test_the_score_is_the_models_own_of_that_box(form: str) -> None:
    net, x = Spots(form), scene()
    with torch.no_grad():
        z = net.head(net.features(x))[0, :, RED[0], RED[1]].double()
    p = z.sigmoid()[0]
    if form == "softmax queries":
        p = z[0].exp() / (z.exp().sum() + 1)
    assert float(cl.explain(net, x, target=ask(form)).scores[0]) == pytest.approx(float(p), rel=1e-5)


@pytest.mark.parametrize("asked", [{"label": 1}, {"box": box_of(BLUE)}, {"box": [34, 26, 54, 49], "label": 1}])
def test_a_detection_is_chosen_by_class_and_by_box(asked: dict[str, Any]) -> None:
    e = cl.explain(Spots(), scene(), target=cl.detection(**asked))
    assert int(e.classes[0]) == 1 and e.where == (f"in the box {', '.join(f'{v:.0f}' for v in box_of(BLUE))}",)


def test_each_picture_of_a_batch_has_its_own() -> None:
    x = torch.cat([scene(), scene((3, 6), (0, 1)), scene((5, 7), (2, 2))])
    e = cl.explain(Spots(), x, target=cl.detection(label=0), method="hirescam")
    assert [peak(m) for m in e.map] == [RED, (3, 6), (5, 7)]
    for i in range(3):
        alone = cl.explain(Spots(), x[i : i + 1], target=cl.detection(label=0), method="hirescam")
        assert apart(e.map[i], alone.map[0]) < 1e-6 and e[i].where == alone.where and e[i].caption() == alone.caption()


@pytest.mark.parametrize("give", [lambda x: x, lambda x: [x[0]], lambda x: ([x[0]],), lambda x: cl_inputs(x)])
def test_a_list_of_pictures_is_as_good_as_a_batch(give: Any) -> None:
    net, x = Spots(), scene()
    assert (
        apart(cl.explain(net, give(x), target=cl.detection()).map, cl.explain(net, x, target=cl.detection()).map) == 0
    )


def cl_inputs(x: Tensor) -> Any:
    from camlucida.core.inputs import Inputs

    return Inputs(([x[0]],))


# ------------------------------------------------------------------------------------------------- disturbed pictures


def by_hand(net: Spots, x: Tensor, box: list[float], k: int, same: float) -> float:
    """The score as a loop over the final detections takes it, in double precision."""
    best = 0.0
    for found in net(x)[:1]:
        for b, label, p in zip(
            found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        ):
            if label != k:
                continue
            w = max(0.0, min(b[2], box[2]) - max(b[0], box[0]))
            h = max(0.0, min(b[3], box[3]) - max(b[1], box[1]))
            area = sum((q[2] - q[0]) * (q[3] - q[1]) for q in (b, box)) - w * h
            share = w * h / area
            best = max(best, p * share if share >= same else 0.0)
    return best


@pytest.mark.parametrize("same", [0.5, 0.0, 1.0])
def test_scores_of_disturbed_pictures_are_those_of_a_loop(same: float) -> None:
    net, x = Spots(), scene()
    target = cl.detection(label=0, same=same)
    row = target.settle(net(x)).rows[0]
    versions = torch.cat([x, scene((1, 3)), scene((2, 2)), scene((5, 0)), x * 0, x + 0.3 * torch.rand(1, 3, 48, 64)])
    expected = [by_hand(net, v[None], box_of(RED), 0, same) for v in versions]
    assert apart(row(net(versions)).double(), torch.tensor(expected, dtype=torch.float64)) < 1e-6
    if same < 1:
        assert (expected[1] > 0) == (same == 0) and expected[0] > 0.5 and expected[4] == 0


@every_form
def test_what_covers_the_thing_lowers_its_score_and_nothing_else_does(form: str) -> None:
    e = cl.explain(Spots(form), scene(), target=ask(form, label=0), method="occlusion")
    inside = torch.zeros(48, 64, dtype=torch.bool)
    inside[: 4 * CELL, : 5 * CELL] = True
    assert inside.flatten()[e.map[0].argmax()] and float(e.map[0][~inside].abs().max()) < 0.2 * float(e.map[0].max())


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "rise:samples=40"])
def test_methods_that_ask_again_follow_the_chosen_box(method: str) -> None:
    e = cl.explain(Spots(), scene(), target=cl.detection(label=1), method=method)
    heat = e.heatmap()
    own, other = (
        heat[4 * CELL : 5 * CELL, 5 * CELL : 6 * CELL].mean(),
        heat[CELL : 2 * CELL, 2 * CELL : 3 * CELL].mean(),
    )
    assert float(own) > float(other) and e.status == "ok"


def test_a_more_certain_rival_does_not_take_its_place() -> None:
    """The chosen box keeps its class and place when the disturbed picture's best detection is another."""
    net = Spots()
    row = cl.detection(label=1).settle(net(scene())).rows[0]
    moved = net(torch.cat([scene(), scene(blue=(0, 7)), scene(red=BLUE, blue=(0, 0))]))
    assert [float(v) > 0.3 for v in row(moved).detach()] == [True, False, False]


def test_the_gradient_is_that_of_the_class_alone() -> None:
    net, x = Spots(), scene()
    e = cl.explain(net, x, target=cl.detection(), method="hirescam", layer="features")
    act = net.features(x).detach().requires_grad_()
    z = net.head(act)[0, 0, RED[0], RED[1]]
    (grad,) = torch.autograd.grad(z.sigmoid(), act)
    assert apart(e.map, (act * grad).sum(1).detach()) < 1e-6


# ----------------------------------------------------------------------------------------------------------- pictures


def test_boxes_are_spoken_of_in_the_pictures_own_pixels() -> None:
    """The picture is twice the model's input, and the model sees its middle only."""
    pixels = (scene()[0].permute(1, 2, 0) * 255).byte().numpy()
    small = Image.fromarray(pixels).resize((128, 96), Image.Resampling.NEAREST)
    whole = Image.new("RGB", (168, 96), (51, 51, 51))
    whole.paste(small, (20, 0))
    look = cl.Preprocess((48, 64), (0.0,) * 3, (1.0,) * 3, crop=1.0, interpolation="nearest")
    left, top, right, bottom = (2 * v for v in box_of(BLUE))
    box = (left + 20, top, right + 20, bottom)
    e = cl.explain(Spots(), whole, target=cl.detection(box=box), preprocess=look)
    assert int(e.classes[0]) == 1 and e.where == (f"in the box {', '.join(f'{v:.0f}' for v in box)}",)
    with pytest.raises(InputError, match="outside what the model sees"):
        cl.explain(Spots(), whole, target=cl.detection(box=(0, 0, 18, 90)), preprocess=look)


def test_labels_may_be_named() -> None:
    from camlucida.models import Model

    look = cl.Preprocess((48, 64), (0.0,) * 3, (1.0,) * 3)
    model = Model(Spots(), look, name="spots", labels=["red", "blue"]).eval()
    e = cl.explain(model, scene(), target=cl.detection(label="blue"))
    assert e.label() == "blue" and e.caption().startswith("blue in the box 36, 28, 52, 44 98%")
    with pytest.raises(TargetError, match="'blue'"):
        cl.explain(model, scene(), target=cl.detection(label="bleu"))


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("asked", "match"),
    [({"index": 2}, "2 detections.*class 0 0.99.*class 1 0.98"), ({"label": 1, "index": 1}, "1 detection of class 1"),
     ({"label": 7}, "no detections of class 7"), ({"box": (0, 30, 12, 44)}, "overlaps the box.*give the box of one"),
     ({"least": 1.0}, "no detections of 1 or more"), ({"box": box_of(RED), "index": 1}, "not by both")],
)  # fmt: skip
def test_what_is_not_there_is_an_error_that_tells_what_is(asked: dict[str, Any], match: str) -> None:
    with pytest.raises(TargetError, match=match):
        cl.explain(Spots(), scene(), target=cl.detection(**asked))


@pytest.mark.parametrize(
    "make",
    [lambda: cl.detection(-1), lambda: cl.detection(True), lambda: cl.detection(1.5), lambda: cl.detection(least=2.0),
     lambda: cl.detection(same=-1.0), lambda: cl.detection(label=[0, 1]), lambda: cl.detection(label=1.5),
     lambda: cl.detection(box=(1, 2, 3)), lambda: cl.detection(box=(9, 2, 3, 4)), lambda: cl.detection(box="all")],
)  # fmt: skip
def test_detections_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises((TargetError, InputError)):
        make()


def test_a_class_that_the_queries_do_not_have_is_an_error() -> None:
    with pytest.raises(TargetError, match="class 2 does not exist: this model has 2 classes"):
        cl.explain(Spots("yolo"), scene(), target=cl.detection(label=2))


def test_a_model_that_finds_boxes_says_so_where_a_class_is_asked_for() -> None:
    for form in ("lists", "sigmoid queries"):
        with pytest.raises(TargetError, match=r"returns detections.*cl\.detection"):
            cl.explain(Spots(form), scene(), target=1)


def test_other_views_of_a_picture_are_refused() -> None:
    for way in (cl.smooth, cl.augmented):
        with pytest.raises(TargetError, match="not followed into other views"):
            way(Spots(), scene(), target=cl.detection())


# ------------------------------------------------------------------------------------------------------------- guests


class Body(nn.Module):
    """A backbone of two convolutions."""

    out_channels = 12

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"0": self.two(self.one(x))}


def detectors(torchvision: ModuleType) -> Iterator[nn.Module]:
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    size: dict[str, Any] = {"min_size": 32, "max_size": 48, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    grid = AnchorGenerator(((12,),), ((1.0,),))
    retina = RetinaNet(Body(), 3, anchor_generator=grid, topk_candidates=12, **size)
    nn.init.normal_(retina.head.classification_head.cls_logits.weight, std=0.3)
    nn.init.zeros_(retina.head.classification_head.cls_logits.bias)
    yield retina
    pool = torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2)
    few = {"rpn_pre_nms_top_n_test": 12, "rpn_post_nms_top_n_test": 6, "box_roi_pool": pool}
    yield FasterRCNN(Body(), num_classes=3, rpn_anchor_generator=grid, **few, **size)
    body = Body()
    body.out_channels = [12]  # type: ignore[assignment]
    yield SSD(body, DefaultBoxGenerator([[1]]), (32, 48), 3, topk_candidates=12, image_mean=[0.5] * 3,
              image_std=[0.5] * 3)  # fmt: skip


@pytest.mark.parametrize("which", range(3), ids=["retinanet", "faster r-cnn", "ssd"])
def test_torchvisions_detectors_are_explained_as_they_are(torchvision: ModuleType, which: int) -> None:
    if not torchvision.extension._has_ops():
        pytest.skip("torchvision's own operators do not fit torch here")
    net = list(detectors(torchvision))[which].eval()
    x = torch.rand(1, 3, 32, 48) * torch.linspace(0, 1, 48)
    e = cl.explain(net, x, target=cl.detection(least=0.01), method="hirescam")
    with torch.no_grad():
        best = net([x[0]])[0]
    assert float(e.scores[0]) == pytest.approx(float(best["scores"][0]), rel=1e-5)
    assert int(e.classes[0]) == int(best["labels"][0]) and e.status in ("ok", "all-negative")
    assert e.layer in ("backbone.two", "backbone", "head.classification_head.conv") and min(e.map.shape[1:]) >= 8
    again = cl.explain(net, ([x[0]],), target=cl.detection(least=0.01), method="ablationcam")
    assert again.scores == e.scores and again.map.isfinite().all()


def test_detr_of_transformers_is_explained_as_it_is(transformers: ModuleType) -> None:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    body = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6, "num_labels": 4}
    config = DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=body,
                        **sizes, **heads)  # fmt: skip
    net = DetrForObjectDetection(config).eval()
    x = torch.rand(1, 3, 64, 96)
    e = cl.explain(net, x, target=cl.detection(label=2, least=0.0), method="hirescam")
    with torch.no_grad():
        y = net(x)
    p = y.logits[0].softmax(1)[:, 2]  # the fifth column is nothing, which the configuration tells
    assert float(e.scores[0]) == pytest.approx(float(p.max()), rel=1e-4)
    cx, cy, w, h = (y.pred_boxes[0, int(p.argmax())] * torch.tensor([96, 64, 96, 64])).tolist()
    assert e.where == (f"in the box {cx - w / 2:.0f}, {cy - h / 2:.0f}, {cx + w / 2:.0f}, {cy + h / 2:.0f}",)
    assert e.layer == "model.encoder.layers.0" and e.map.shape[1:] == (8, 12)  # over the picture, not of six queries


def test_without_a_configuration_detr_must_be_told_what_its_last_logit_is() -> None:
    with pytest.raises(TargetError, match="nothing=True"):
        cl.explain(Spots("softmax queries"), scene(), target=cl.detection())
    with pytest.raises(TargetError, match="3 logits"):
        Beside(classes=7) and cl.detection()({"logits": torch.zeros(1, 4, 3), "pred_boxes": torch.rand(1, 4, 4)})


class Padding(Spots):
    """It pads its pictures within itself, as torchvision's detectors do."""

    class Transform(nn.Module):
        size_divisible = 64

        def forward(self, images: list[Tensor]) -> Any:
            x = torch.zeros(len(images), 3, 64, 64)
            x[:, :, : images[0].shape[1], : images[0].shape[2]] = torch.stack(images)
            return Images(x, [tuple(images[0].shape[1:])]), None

    def __init__(self) -> None:
        super().__init__()
        self.transform = self.Transform()

    def forward(self, x: Any) -> Any:
        images, _ = self.transform(list(x))
        return super().forward(images.tensors)


class Images:
    def __init__(self, tensors: Tensor, sizes: list[Any]) -> None:
        self.tensors, self.image_sizes = tensors, sizes


def test_a_model_that_pads_within_itself_has_its_map_on_the_thing() -> None:
    """Spread over the picture's own sides, the map of a 48-pixel picture padded to 64 would lie a quarter too high."""
    net, x = Padding(), scene(height=48, width=32, red=(4, 1), blue=(0, 3))
    e = cl.explain(net, x, target=cl.detection(label=0), method="hirescam")
    heat = e.heatmap()
    row, column = divmod(int(heat.argmax()), 32)
    assert 4 * CELL <= row < 5 * CELL and CELL <= column < 2 * CELL
    beside = cl.sweep(net, x, targets=[_first, cl.detection(label=0)], methods=["hirescam"])
    assert beside[1].centres == e.centres  # whatever is asked beside it


def _first(found: Any) -> Tensor:
    return cl.detection(label=0)(found)


# --- examples/detection.py


def test_the_example_finds_each_thing_by_both_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "detection.py"))["main"](str(tmp_path / "a" / "boxes.png"))
    assert found == [(True, True)] * 3 and capsys.readouterr().out.count("both peak on it") == 3
    assert (tmp_path / "a" / "boxes.png").stat().st_size > 5000
