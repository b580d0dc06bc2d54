"""A model's own answer where it is no class: a segmenter's commonest class, a detector's surest box."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from replicas import apart
from spots import Spots
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import TargetError
from camlucida.tasks.segmentation import dense


class Painter(nn.Module):
    """A segmenter in a container, or whatever else is made of its answer."""

    def __init__(self, classes: int = 5, wrap: Any = None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh())
        self.classes = nn.Conv2d(6, classes, 1)
        self.wrap = wrap or (lambda y: {"out": y, "aux": y * 2})

    def forward(self, x: Tensor) -> Any:
        return self.wrap(F.interpolate(self.classes(self.encoder(x)), scale_factor=2.0))


def painter(**how: Any) -> Painter:
    torch.manual_seed(3)
    return Painter(**how).double().eval()


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def scene() -> Tensor:
    """A red square and a smaller blue one, on black."""
    x = torch.zeros(1, 3, 64, 64)
    x[0, 0, 8:24, 8:24], x[0, 2, 40:48, 48:56] = 1.0, 0.9
    return x


# -------------------------------------------------------------------------------------------------------- segmenters


def test_a_segmenter_is_explained_where_it_sees_its_commonest_class() -> None:
    net, x = painter(), pictures()
    e, told = cl.explain(net, x), cl.explain(net, x, target=cl.region())
    assert apart(e.map, told.map) == 0 and e.where == told.where and e.layer == told.layer == "encoder"
    assert e.classes.tolist() == told.classes.tolist() and e.facts.target == "the commonest class where it is seen"


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: {"logits": y}, lambda y: {"logits": y[:, :, ::2, ::2]}])
def test_whatever_the_segmenter_returns_it_in(wrap: Any) -> None:
    e, told = cl.explain(painter(wrap=wrap), pictures()), cl.explain(painter(wrap=wrap), pictures(), target=cl.region())
    assert apart(e.map, told.map) == 0 and e.where == told.where


def test_the_background_is_no_answer_where_anything_else_is_seen() -> None:
    net, x = painter(), pictures(1)
    counts = net(x)["out"].argmax(1).flatten().bincount(minlength=5)
    first, second = counts.argsort(descending=True)[:2].tolist()
    for word in ("__background__", "Background", "unlabeled"):
        labels = [word if k == first else f"thing {k}" for k in range(5)]
        named = Named(net, labels)
        assert (
            int(cl.explain(named, x).classes[0]) == int(cl.explain(named, x, target=cl.region()).classes[0]) == second
        )
        assert int(cl.explain(named, x, target=cl.region(box=(0, 0, 24, 16))).classes[0]) == first  # a part was named
    with torch.no_grad():
        net.classes.bias[first] += 100
    assert int(cl.explain(named, x).classes[0]) == first


class Named(nn.Module):
    """A net with the names of its classes."""

    notes: tuple[str, ...] = ()
    only_carries, confident, preprocess, name = True, None, None, "mine"

    def __init__(self, net: nn.Module, labels: list[str]) -> None:
        super().__init__()
        self.net, self.labels = net, labels


def test_the_second_time_nothing_is_looked_at_again() -> None:
    net, x, passes = painter(), pictures(), []
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(3):
        cl.explain(net, x)
    first = len(passes)
    cl.explain(net, x + 0.1)
    cl.explain(net, x, target=cl.top1)
    assert len(passes) == first + 2
    passes.clear()
    cl.explain(painter(), x)
    assert not passes


def test_a_region_that_one_holds_is_surveyed_for_once() -> None:
    net, x, target, passes = painter(), pictures(), cl.region(1, box=(2, 2, 9, 9)), []
    cl.explain(net, x, target=target)
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    cl.explain(net, x, target=target)
    assert len(passes) == 1


def test_masks_and_their_classes_are_brought_together() -> None:
    """MaskFormer's semantic answer, by a loop over its queries."""
    generator = torch.Generator().manual_seed(0)
    y, masks = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 4, 6, generator=generator)
    found = dense({"class_queries_logits": y, "masks_queries_logits": masks, "loss": None})
    for b in range(2):
        expected = sum(y[b, q].softmax(0)[:4, None, None] * masks[b, q].sigmoid() for q in range(3))
        assert apart(found[b].exp(), expected) < 1e-6
    assert found.shape == (2, 4, 4, 6)


# --------------------------------------------------------------------------------------------------------- detectors


@pytest.mark.parametrize("form", ["lists", "yolo"])
def test_a_detector_is_explained_at_its_surest_box(form: str) -> None:
    e, told = cl.explain(Spots(form), scene()), cl.explain(Spots(form), scene(), target=cl.detection())
    assert apart(e.map, told.map) == 0 and e.where == told.where and e.classes.tolist() == [0]


def test_the_runner_up_is_the_next_box_and_beyond_there_is_none() -> None:
    found = cl.sweep(Spots(), scene(), targets=cl.top(2))
    told = cl.sweep(Spots(), scene(), targets=[cl.detection(0), cl.detection(1)])
    assert [e.where for e in found] == [e.where for e in told] and found[0].where != found[1].where
    assert all(apart(e.map, t.map) == 0 for e, t in zip(found, told, strict=True))
    with pytest.raises(TargetError, match=r"picture 0 has \d detections"):
        cl.explain(Spots(), scene(), target=cl.rank(9))


def test_queries_whose_last_class_may_be_none_are_asked_about() -> None:
    with pytest.raises(TargetError, match=r"cl\.detection\(nothing=True\)"):
        cl.explain(Spots("sigmoid queries"), scene())


# ------------------------------------------------------------------------------------------------------- what is not


def test_a_class_is_still_refused_and_told_how_to_ask() -> None:
    with pytest.raises(TargetError, match=r"cl\.region\(8\)"):
        cl.explain(painter(wrap=lambda y: y), pictures(), target=1)
    with pytest.raises(TargetError, match=r"not for top 2"):
        cl.sweep(painter(), pictures(), targets=cl.top(2))
    with pytest.raises(TargetError, match=r"returns detections"):
        cl.explain(Spots(), scene(), target=cl.rank(1, score="probability"))


@pytest.mark.parametrize(
    "wrap",
    [lambda y: y[:, :3], lambda y: y[:, :1], lambda y: y.flatten(2).transpose(1, 2), lambda y: {"depth": y[:, :1]},
     lambda y: [y.mean((2, 3))] * 2, lambda y: {"reconstruction": y[:, :3]}, lambda y: (y, y.mean((2, 3))[0]),
     lambda y: y[:, :, ::4, ::4], lambda y: y.movedim(1, -1), lambda y: {"a": y[:, :3], "b": y[:, 0]}],
    ids=["a picture", "a depth", "tokens", "no classes", "two heads", "made anew", "features beside", "features",
         "classes last", "two pictures"],
)  # fmt: skip
def test_what_is_not_plain_is_refused(wrap: Any) -> None:
    with pytest.raises(TargetError):
        cl.explain(painter(wrap=wrap), pictures())


def test_as_many_classes_as_channels_are_classes_where_they_have_names() -> None:
    net = painter(classes=3, wrap=lambda y: y)
    assert cl.explain(Named(net, ["sky", "sea", "land"]), pictures()).where


def test_places_of_which_there_is_one_are_no_places() -> None:
    net = painter(wrap=lambda y: y.mean((2, 3), keepdim=True))
    flat = painter(wrap=lambda y: y.mean((2, 3)))
    found = cl.sweep(net, pictures(), targets=cl.top(2))
    assert all(
        apart(e.map, f.map) == 0 for e, f in zip(found, cl.sweep(flat, pictures(), targets=cl.top(2)), strict=True)
    )


# ------------------------------------------------------------------------------------------- what changes between calls


def test_a_model_that_becomes_another_kind_is_looked_at_again() -> None:
    net, x = painter(wrap=lambda y: y), pictures()
    assert cl.explain(net, x).where
    net.wrap = lambda y: y.mean((2, 3))
    assert not cl.explain(net, x).where and not cl.explain(net, x).where
    net.wrap = lambda y: y
    assert cl.explain(net, x).where


def test_many_threads_ask_for_the_first_time_at_once() -> None:
    for _ in range(5):
        net, x = painter(), pictures(1)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: cl.explain(net, x), range(8)))  # noqa: B023
        assert all(torch.equal(e.map, found[0].map) for e in found)


def test_the_layer_of_a_box_is_found_anew_for_each_picture() -> None:
    """Red is seen on a fine grid, blue on a coarse one."""

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 1, 4, 4, bias=False), nn.Conv2d(3, 1, 8, 8, bias=False)
            with torch.no_grad():
                for conv, channel in ((self.fine, 0), (self.coarse, 2)):
                    conv.weight.zero_()
                    conv.weight[0, channel] = 1.0 / conv.weight[0, channel].numel()

        def forward(self, x: Tensor) -> Any:
            found = []
            for maps in zip(self.fine(x), self.coarse(x), strict=True):
                boxes, scores, labels = [], [], []
                for k, y in enumerate(maps):
                    side, at = x.shape[3] / y.shape[2], y[0].flatten().detach().argmax()
                    row, column = at // y.shape[2], at % y.shape[2]
                    boxes.append(torch.stack([column, row, column + 1, row + 1]) * side)
                    scores.append(y[0].flatten()[at].clamp(0, 1))
                    labels.append(k)
                found.append(
                    {"boxes": torch.stack(boxes), "scores": torch.stack(scores), "labels": torch.tensor(labels)}
                )
            return found

    red, blue = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    red[0, 0, 8:16, 8:16], blue[0, 2, 8:16, 8:16] = 0.9, 0.9
    for target in (cl.top1, cl.detection()):
        net = Scales()
        for x, layer in ((red, "fine"), (blue, "coarse"), (red, "fine")):
            e = cl.explain(net, x, target=target)
            assert (e.layer, e.status) == (layer, "ok")


def test_a_part_of_the_answer_may_be_chosen_by_whatever_can_be_called() -> None:
    @dataclass
    class Pick:
        key: str

        def __call__(self, output: Any) -> Any:
            return output[self.key]

    net, x = painter(wrap=lambda y: {"masks": y, "odds": y.mean((2, 3))}), pictures()
    for _ in range(2):
        assert cl.explain(net, x, output=Pick("masks"), layer="encoder").where
        assert not cl.explain(net, x, output=Pick("odds"), layer="encoder").where


def test_other_views_of_its_own_answer_are_refused() -> None:
    for way in (cl.smooth, cl.augmented):
        with pytest.raises(TargetError, match="not followed into other views"):
            way(painter(), pictures())
