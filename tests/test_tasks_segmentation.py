"""Regions: scores by a loop over pixels, places of the picture and of the output, what is held, and what is refused."""

import math
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from replicas import apart
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.core.capture import Inputs
from camlucida.core.layers import survey
from camlucida.errors import InputError, TargetError
from camlucida.tasks.segmentation import bottleneck, dense

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Fine(nn.Module):
    """An encoder that halves twice, a head, and an answer at the picture's own size in a container."""

    def __init__(self, classes: int = 4, wrap: Any = None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 12, 3, 2, 1), nn.Tanh())
        self.neck = nn.Sequential(nn.Conv2d(12, 8, 3, 1, 1), nn.Tanh())
        self.classes = nn.Conv2d(8, classes, 1)
        self.wrap = wrap or (lambda y: y)

    def forward(self, x: Tensor) -> Any:
        return self.wrap(F.interpolate(self.classes(self.neck(self.encoder(x))), size=x.shape[2:], mode="nearest"))


def net(**more: Any) -> Fine:
    torch.manual_seed(1)
    return Fine(**more).double().eval()


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def by_hand(y: Tensor, k: int, mask: list[list[float]], score: str, reduce: str) -> float:
    """One picture ``k h w``: a loop over its pixels."""
    total = weight = 0.0
    for r, row in enumerate(mask):
        for c, w in enumerate(row):
            values = [float(v) for v in y[:, r, c]]
            p = math.exp(values[k]) / sum(math.exp(v) for v in values)
            total += w * {"logit": values[k], "probability": p, "log_probability": math.log(p)}[score]
            weight += w
    return total / weight if reduce == "mean" else total


# ------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("score", ["logit", "probability", "log_probability"])
def test_the_score_over_a_mask_is_that_of_a_loop(score: str, reduce: str) -> None:
    model, x = net(), pictures()
    mask = torch.zeros(16, 24)
    mask[3:9, 5:20] = 1
    e = cl.explain(model, x, target=cl.region(2, mask=mask, score=score, reduce=reduce))
    y = model(x).detach()
    expected = [by_hand(y[i], 2, mask.tolist(), score, reduce) for i in range(2)]
    assert apart(e.scores, torch.tensor(expected, dtype=torch.float64)) < 1e-6
    for i in range(2):
        sure = by_hand(y[i], 2, mask.tolist(), "probability", "mean")
        assert e.probability(i) == pytest.approx(sure, rel=1e-5) and "class 2 over the mask" in e.caption(i)


def test_where_the_model_sees_it_is_where_it_wins() -> None:
    model, x = net(), pictures()
    y = model(x).detach()
    k = int(y[0].argmax(0).flatten().mode().values)
    e = cl.explain(model, x[:1], target=cl.region(k))
    won = (y[0].argmax(0) == k).double()
    assert float(e.scores[0]) == pytest.approx(by_hand(y[0], k, won.tolist(), "logit", "mean"), rel=1e-6)
    commonest = cl.explain(model, x[:1], target=cl.region())
    assert int(commonest.classes[0]) == k and apart(commonest.map, e.map) < 1e-12


@pytest.mark.parametrize("part", [{"box": (5, 3, 20, 9)}, {"box": (5.0, 3.0, 20.0, 9.0)}])
def test_a_box_is_the_mask_of_its_pixels(part: dict[str, Any]) -> None:
    mask = torch.zeros(16, 24)
    mask[3:9, 5:20] = 1
    one, two = (cl.explain(net(), pictures(), target=cl.region(1, **p)) for p in (part, {"mask": mask}))
    assert apart(one.map, two.map) < 1e-10 and one.where[0] == "in the box 5, 3, 20, 9"


def test_a_point_is_its_pixel_and_a_stack_of_masks_one_for_each_picture() -> None:
    model, x = net(), pictures()
    y = model(x).detach()
    e = cl.explain(model, x, target=cl.region(3, point=(23, 15)))
    assert apart(e.scores, y[:, 3, 15, 23]) < 1e-10 and e.where[1] == "at the point 23, 15"
    masks = torch.zeros(2, 16, 24)
    masks[0, 0, 0], masks[1, 15, 23] = 1, 1
    e = cl.explain(model, x, target=cl.region(3, mask=masks))
    assert apart(e.scores, torch.stack([y[0, 3, 0, 0], y[1, 3, 15, 23]])) < 1e-10


def test_the_map_is_that_of_the_gradient() -> None:
    model, x = net(), pictures()
    e = cl.explain(model, x, target=cl.region(2, box=(0, 0, 12, 8)), method="hirescam", layer="encoder")
    act = model.encoder(x).detach().requires_grad_()
    y = F.interpolate(model.classes(model.neck(act)), size=(16, 24), mode="nearest")
    (grad,) = torch.autograd.grad(y[:, 2, :8, :12].mean((1, 2)).sum(), act)
    assert apart(e.map, (act * grad).sum(1).detach()) < 1e-10


# ------------------------------------------------------------------------------------------------------------ outputs


class Output(dict):  # type: ignore[type-arg]
    """As transformers has it."""


@pytest.mark.parametrize(
    "wrap",
    [lambda y: y, lambda y: {"out": y, "aux": y * 2}, lambda y: Output(logits=y), lambda y: (y, y.mean((2, 3))),
     lambda y: [y]],
    ids=["tensor", "dict", "output", "tuple", "list"],
)  # fmt: skip
def test_scores_of_places_are_found_in_whatever_a_segmenter_returns(wrap: Any) -> None:
    asked = cl.region(1, box=(2, 2, 9, 9))
    assert (
        apart(cl.explain(net(wrap=wrap), pictures(), target=asked).map, cl.explain(net(), pictures(), target=asked).map)
        == 0
    )


def test_several_that_could_be_meant_are_told_apart_by_output() -> None:
    model = net(wrap=lambda y: {"first": y, "second": -y})
    asked = cl.region(1, box=(2, 2, 9, 9))
    with pytest.raises(TargetError, match=r"first \(2, 4, 16, 24\), second .*output="):
        cl.explain(model, pictures(), target=asked)
    found = [cl.explain(model, pictures(), target=asked, output=name) for name in ("first", "second")]
    assert apart(found[0].map, -found[1].map) < 1e-12 and found[0].map.abs().max() > 0


def test_an_answer_of_a_quarters_size_is_asked_in_the_pictures_pixels() -> None:
    """A cell counts by the share of it that is covered."""
    model = net(wrap=lambda y: y[:, :, ::4, ::4])
    x = pictures(1)
    y = model(x).detach()[0, 1]  # 4 6
    e = cl.explain(model, x, target=cl.region(1, box=(2, 4, 8, 7)))
    expected = (0.5 * y[1, 0] + 1.0 * y[1, 1]) / 1.5
    assert float(e.scores[0]) == pytest.approx(float(expected), rel=1e-6)


def test_one_logit_is_there_above_zero() -> None:
    model = net(classes=1)
    x = pictures(1)
    y = model(x).detach()[0, 0]
    e = cl.explain(model, x, target=cl.region())
    assert float(e.scores[0]) == pytest.approx(float(y[y > 0].mean())) and int(e.classes[0]) == 0
    assert e.probability() == pytest.approx(float(y[y > 0].sigmoid().mean()), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 4])
def test_what_ends_in_probabilities_is_as_sure_as_it_says(classes: int) -> None:
    """The softmax of probabilities would be near 1/k; of one sigmoid all would lie above zero."""
    torch.manual_seed(1)
    model = net(classes=classes, wrap=torch.sigmoid if classes == 1 else lambda y: (3 * y).softmax(1))
    x = pictures(1)
    p = model(x).detach()[0]
    there = p[0] > 0.5 if classes == 1 else p.argmax(0) == 2
    assert there.any() and not there.all()
    e = cl.explain(model, x, target=cl.region(None if classes == 1 else 2))
    sure = float(p[e.classes[0]][there].mean())
    assert float(e.scores[0]) == pytest.approx(sure) and e.probability() == pytest.approx(sure, rel=1e-5)


def test_an_answer_without_its_axis_of_classes_is_not_read_by_rows() -> None:
    model = net(classes=1, wrap=lambda y: y[:, 0])
    with pytest.raises(TargetError, match=r"axis of classes.*y\[:, None\]"):
        cl.explain(model, pictures(1), target=cl.region())
    e = cl.explain(model, pictures(1), target=cl.region(), output=lambda y: y[:, None])
    assert apart(e.map, cl.explain(net(classes=1), pictures(1), target=cl.region()).map) < 1e-12


def test_what_is_read_at_each_place_is_said() -> None:
    assert str(cl.region(1, score="probability", reduce="sum")) == "class 1 where it is seen, probability, summed"
    e = cl.explain(net(), pictures(1), target=cl.region(1, box=(2, 2, 9, 9), score="against:3"))
    assert e.caption().startswith("class 1 in the box 2, 2, 9, 9 against 3 ")


# ------------------------------------------------------------------------------------------------------- what is held


def test_the_region_stays_while_a_method_asks_again() -> None:
    """An answer to a covered picture has another region; the score is still over the old one."""
    model, x = net(), pictures(1)
    y = model(x).detach()[0]
    k = int(y.argmax(0).flatten().mode().values)
    won = (y.argmax(0) == k).double()
    row = cl.region(k).settle(model(x)).rows[0]
    others = torch.cat([x, x * 0, -x])
    expected = [by_hand(v, k, won.tolist(), "logit", "mean") for v in model(others).detach()]
    assert apart(row(model(others)).detach(), torch.tensor(expected, dtype=torch.float64)) < 1e-10
    free = cl.explain(model, x, target=cl.region(k), method="occlusion")
    held = cl.explain(model, x, target=cl.region(k, mask=won), method="occlusion")
    assert apart(free.map, held.map) < 1e-10 and held.map.abs().max() > 0


def test_the_mask_is_in_the_pixels_of_the_picture_that_was_handed_over() -> None:
    """The model sees the middle of a picture twice its size."""
    model = net()
    look = cl.Preprocess((16, 24), (0.5,) * 3, (0.5,) * 3, crop=1.0)
    whole = Image.effect_noise((88, 32), 60).convert("RGB")  # of 88 columns it sees 20 to 68
    mask = torch.zeros(32, 88)
    mask[8:16, 24:40] = 1
    e = cl.explain(model, whole, target=cl.region(2, mask=mask), preprocess=look)
    with torch.no_grad():
        y = model(look(whole)[0][None].double())[0, 2]
    assert float(e.scores[0]) == pytest.approx(float(y[4:8, 2:10].mean()), rel=1e-5)
    with pytest.raises(InputError, match="nothing that the model sees"):
        cl.explain(model, whole, target=cl.region(2, box=(0, 0, 19, 32)), preprocess=look)


# ---------------------------------------------------------------------------------------------------------- the layer


def test_the_layer_is_the_end_of_the_encoder_and_not_the_answer() -> None:
    assert cl.explain(net(), pictures(1), target=cl.region(1, point=(4, 4))).layer == "encoder"
    seen = survey(net(), Inputs((pictures(1),)), lambda y: y[:, 0].mean((1, 2)))
    assert seen.choice.name == "classes" and bottleneck(seen).name == "encoder"


def test_the_example_shows_the_reason_at_the_layer_that_is_chosen_and_not_at_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = runpy.run_path(str(EXAMPLES / "segmentation.py"))["main"](str(tmp_path / "a" / "masks.png"))
    assert all(why > 0.15 and echo < 0.05 for why, echo in shares)
    assert capsys.readouterr().out.count("100% of the square painted so") == 2
    assert (tmp_path / "a" / "masks.png").stat().st_size > 5000


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("asked", "match"),
    [({"index": 4}, "4 classes, 0 to 3"), ({"index": 1, "mask": torch.ones(3, 3)}, "is 3×3, and the picture 16×24"),
     ({"index": 1, "mask": torch.ones(5, 16, 24)}, "5×16×24"), ({"index": 1, "box": (30, 2, 40, 9)}, "24×16 pixels"),
     ({"index": 1, "point": (24, 0)}, "nothing that the model sees"), ({"index": "dog"}, "no class called 'dog'")],
)  # fmt: skip
def test_what_does_not_fit_the_picture_or_the_model_is_an_error(asked: dict[str, Any], match: str) -> None:
    with pytest.raises((TargetError, InputError), match=match):
        cl.explain(net(), pictures(), target=cl.region(**asked))


def test_a_class_that_is_seen_nowhere_is_an_error_that_tells_what_is() -> None:
    model = net()
    with torch.no_grad():
        model.classes.bias[2] -= 100
    with pytest.raises(TargetError, match=r"class 2 is seen nowhere in picture 0 \(its classes: "):
        cl.explain(model, pictures(), target=cl.region(2))
    assert cl.explain(model, pictures(), target=cl.region(2, box=(1, 1, 9, 9))).status in ("ok", "all-negative")


@pytest.mark.parametrize(
    "make",
    [lambda: cl.region(1.5), lambda: cl.region([1, 2]), lambda: cl.region(1, mask=torch.ones(4, 4), box=(1, 2, 3, 4)),
     lambda: cl.region(1, score="nope"), lambda: cl.region(1, reduce="max"), lambda: cl.region(1, box=(1, 2, 3)),
     lambda: cl.region(1, box=(5, 5, 5, 9)), lambda: cl.region(1, point="x"), lambda: cl.region(1, point=(1, math.nan)),
     lambda: cl.region(1, mask=torch.zeros(4, 4)), lambda: cl.region(1, mask=-torch.ones(4, 4))],
)  # fmt: skip
def test_regions_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises((TargetError, InputError)):
        make()


@pytest.mark.parametrize(
    "output", [torch.zeros(2, 5), {"a": torch.zeros(2, 5)}, None, [], {"logits": torch.zeros(2, 5)}]
)
def test_an_answer_without_places_is_an_error(output: Any) -> None:
    with pytest.raises(TargetError, match="class and place"):
        dense(output)


def test_a_segmenter_asked_for_a_class_says_how_to_ask() -> None:
    with pytest.raises(TargetError, match=r"cl\.region\(8\)"):
        cl.explain(net(), pictures(), target=1)


def test_the_region_is_kept_on_disk(tmp_path: Path) -> None:
    e = cl.explain(net(), pictures(), target=cl.region(1, box=(2, 2, 9, 9)))
    e.save(tmp_path / "e.npz")
    again = cl.load_explanation(tmp_path / "e.npz")
    assert (
        again.caption(1) == e.caption(1) and again[1].where == e[1].where and again.probability(1) == e.probability(1)
    )


# ------------------------------------------------------------------------------------------------------------- guests


def test_segformer_of_transformers_is_explained_as_it_is(transformers: ModuleType) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 32], num_attention_heads=[1] * 4,
                             decoder_hidden_size=16, num_labels=5, drop_path_rate=0.0)  # fmt: skip
    model = SegformerForSemanticSegmentation(config).eval()
    x = torch.randn(1, 3, 64, 64)
    e = cl.explain(model, x, target=cl.region(3, box=(0, 0, 32, 32)))
    with torch.no_grad():
        y = model(x).logits  # a quarter of the picture's size
    assert y.shape[2:] == (16, 16) and float(e.scores[0]) == pytest.approx(float(y[0, 3, :8, :8].mean()), rel=1e-4)
    assert tuple(e.map.shape[1:]) == (2, 2) and "decode_head" not in e.layer


@pytest.mark.parametrize("which", ["fcn", "deeplab", "lraspp"])
def test_torchvisions_segmenters_are_explained_as_they_are(torchvision: ModuleType, which: str) -> None:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
    from torchvision.models.segmentation.fcn import FCN, FCNHead
    from torchvision.models.segmentation.lraspp import LRASPP

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
            self.two = nn.Sequential(nn.Conv2d(8, 32, 3, 2, 1), nn.ReLU())

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            low = self.one(x)
            return {"low": low, "high": self.two(low)} if which == "lraspp" else {"out": self.two(low)}

    model = {"fcn": lambda: FCN(Body(), FCNHead(32, 5)), "deeplab": lambda: DeepLabV3(Body(), DeepLabHead(32, 5)),
             "lraspp": lambda: LRASPP(Body(), 8, 32, 5, inter_channels=8)}[which]().eval()  # fmt: skip
    x = torch.randn(1, 3, 32, 32)
    e = cl.explain(model, x, target=cl.region(2, box=(0, 0, 16, 16)))
    with torch.no_grad():
        y = model(x)["out"]
    assert float(e.scores[0]) == pytest.approx(float(y[0, 2, :16, :16].mean()), rel=1e-4)
    assert (e.map.shape[1:] == (8, 8) and e.layer in ("backbone.two", "backbone")) or which == "deeplab"


class Block(nn.Module):
    """Wider inside than what it gives."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(wide, 4 * wide, 1), nn.GELU(), nn.Conv2d(4 * wide, wide, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class Pyramid(nn.Module):
    """An encoder of blocks, pools of given sizes beside each other, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 4, 4), nn.Sequential(Block(6), Block(6))
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(6, 9, 1)) for n in (2, 3))
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.blocks(self.stem(x))
        size = made.shape[2:]
        beside = [nn.functional.interpolate(pool(made), size, mode="bilinear") for pool in self.pools]
        return nn.functional.interpolate(self.head(torch.cat([made, *beside], 1)), x.shape[2:], mode="bilinear")


def test_the_end_of_the_encoder_is_neither_a_pyramid_of_pools_nor_the_inside_of_a_block() -> None:
    e = cl.explain(Pyramid().eval(), torch.randn(1, 3, 32, 32), target=cl.region(2))
    assert (e.layer, tuple(e.map.shape[1:])) == ("blocks", (8, 8))
