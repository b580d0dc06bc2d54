"""Models and calls that once gave a wrong map without a word: each must be right, or refused with the reason."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida.core import scope
from camlucida.core.capture import Inputs
from camlucida.core.layers import survey
from camlucida.errors import InputError, LayerError, LayoutError, MethodError, TargetError


def small(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)
    ).eval()  # fmt: skip


class Wrapped(nn.Module):
    """A net behind a forward of one's own."""

    def __init__(self, net: nn.Module, after: Any = lambda y: y, before: Any = lambda x: x) -> None:
        super().__init__()
        self.net, self.after, self.before = net, after, before

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(self.before(x)))


@pytest.mark.parametrize("after", [lambda y: y.squeeze(), lambda y: y.T, lambda y: y.repeat(2, 1)])
def test_rows_that_are_not_the_pictures_are_refused(after: Any) -> None:
    with pytest.raises(TargetError, match="rows of scores for 1 picture"):
        cl.explain(Wrapped(small(), after), torch.rand(1, 3, 8, 8), layer="net.1")


def test_a_module_with_attributes_of_our_names_keeps_its_forward() -> None:
    net = Wrapped(small(), after=lambda y: y[:, [3, 1]])
    net.preprocess, net.labels = (lambda x: x), ("a", "b")  # type: ignore[assignment]
    x = torch.rand(1, 3, 8, 8)
    e = cl.explain(net, x)
    assert e.layer == "net.1" and e.logits is not None and e.logits.shape == (1, 2)


def test_a_layer_that_gives_its_feature_twice_keeps_both_paths() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, y.amax((2, 3))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.fc = Twice(), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, top = self.both(x)
            return self.fc(torch.cat([y.mean((2, 3)), top], 1))

    net, x = Net().eval(), torch.rand(1, 3, 8, 8)
    act = net.both.conv(x).detach().requires_grad_()
    score = net.fc(torch.cat([act.mean((2, 3)), act.amax((2, 3))], 1))[:, 1].sum()
    (grad,) = torch.autograd.grad(score, act)
    assert torch.allclose(
        cl.explain(net, x, layer="both", target=1, method="hirescam").map, (grad * act).sum(1), atol=1e-6
    )


def test_a_convolution_says_its_axes_whatever_the_proportions() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 32, (16, 1), (16, 1)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)
    )  # fmt: skip
    x = torch.rand(1, 1, 128, 400)
    for layer in (None, "0", "1"):
        e = cl.explain(net, x, target=1, layer=layer)
        assert e.facts.layout == "channels first" and e.map.shape == (1, 8, 400)


def test_a_signal_transformer_is_read_along_its_steps() -> None:
    class Signal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv1d(2, 32, 1)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.enc, self.fc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.enc(self.embed(x).transpose(1, 2)).mean(1))

    e = cl.explain(Signal(), torch.rand(1, 2, 100), target=1)
    assert e.map.shape == (1, 100) and e.facts.layout == "channels last"


@pytest.mark.parametrize("tokens", [300, 512, 1000])
def test_queries_are_not_taken_for_a_picture(tokens: int) -> None:
    from camlucida.core.layouts import infer

    with pytest.raises(LayoutError, match=f"{tokens} tokens fit no grid"):
        infer((1, tokens, 64), (224, 224), None, [(14, 14)])


def test_places_last_are_not_taken_for_places_first() -> None:
    from camlucida.core.layouts import infer, tokens

    with pytest.raises(LayoutError, match="looks like places last"):
        infer((1, 256, 196), (224, 224), None, [(14, 14)])
    with pytest.raises(LayoutError, match="three axes"):
        tokens(0, (7,))(torch.zeros(1, 4, 7, 7))


def test_a_black_picture_first_does_not_spoil_the_others() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].bias.fill_(-0.1)  # dead on black
        net[3].bias.fill_(-0.1)
    black, photo = torch.zeros(1, 3, 8, 8), torch.rand(1, 3, 8, 8) * 4
    alone = cl.explain(net, photo, layer="1").map
    assert cl.explain(net, black, layer="1").status in ("zero gradient", "no evidence")
    assert torch.equal(cl.explain(net, photo, layer="1").map, alone)
    assert cl.explain(net, torch.cat([black, photo])).layer == cl.explain(net, photo).layer


def test_a_model_that_changes_is_looked_at_anew() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
            self.deep = True

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            return self.fc((self.b(x).relu() if self.deep else x).mean((2, 3)))

    net, x = Changing().eval(), torch.rand(1, 3, 9, 9)
    assert cl.explain(net, x).layer == "b"
    net.deep = False
    assert cl.explain(net, x).layer == "a"
    net.deep = True
    net.b = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))  # type: ignore[assignment]
    assert cl.explain(net, x).layer == "b"


def test_only_so_many_shapes_are_remembered() -> None:
    from camlucida.core import layers

    net = small()
    for side in range(8, 8 + layers._SHAPES + 4):
        cl.explain(net, torch.rand(1, 3, side, side))
    assert sum(map(len, layers._SEEN[net].values())) <= layers._SHAPES


def test_a_model_that_writes_into_its_input_writes_into_a_copy() -> None:
    def before(x: Tensor) -> Tensor:
        return x.sub_(0.5)

    net, x = Wrapped(small(), before=before), torch.rand(2, 3, 8, 8)
    kept = x.clone()
    first, second = cl.explain(net, x, target=1), cl.explain(net, x, target=1)
    assert torch.equal(x, kept) and torch.equal(first.map, second.map)


def test_a_buffer_used_again_does_not_change_what_is_shown() -> None:
    x = torch.rand(1, 3, 8, 8)
    e = cl.explain(small(), x, target=1)
    before = np.asarray(e.overlay()).copy()
    x.zero_()
    assert np.array_equal(np.asarray(e.overlay()), before)


def test_probabilities_are_not_made_twice() -> None:
    x = torch.rand(1, 3, 8, 8)
    raw, soft = cl.explain(small(), x), cl.explain(Wrapped(small(), lambda y: y.softmax(1)), x)
    assert raw.probability() == pytest.approx(soft.probability(), rel=1e-5)


def test_the_number_of_targets_does_not_change_an_answer() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    x = torch.rand(1, 3, 8, 8)
    for method in ("gradcam", "xgradcam", "gradcampp", "layercam", "hirescam"):
        one = cl.explain(net, x, target=2, layer="1", method=method).map
        many = cl.sweep(net, x, targets=range(5), layers=["1"], methods=[method])[2].map
        assert torch.allclose(one, many, atol=1e-6), method


def test_rounding_noise_is_not_painted_as_evidence() -> None:
    """Before an instance norm every channel's mean gradient is exactly zero: what is left of Grad-CAM is rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    ).eval()  # fmt: skip
    x = torch.rand(2, 3, 16, 16)
    blank = cl.explain(net, x, layer="0", target=1)
    assert blank.statuses == ("no evidence",) * 2 and blank.heatmap().max() == 0 and blank.map.abs().max() > 0
    assert cl.explain(net, x, layer="0", target=1, method="hirescam").status == "ok"
    assert cl.explain(net, x, layer="1", target=1).status == "ok"


def test_a_layer_of_one_place_is_refused() -> None:
    with pytest.raises(LayerError, match=r"one place only.*use layer='1'"):
        cl.explain(small(), torch.rand(1, 3, 8, 8), layer="2")


def test_a_backbone_without_gradients_needs_no_layer() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = small()[:2].requires_grad_(False)
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.backbone(x)
            return self.fc(x.mean((2, 3)))

    e = cl.explain(Probe(), torch.rand(1, 3, 8, 8), target=1)
    assert e.layer == "backbone" and e.map.std() > 0


def test_the_picture_is_found_beside_its_mask() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, pixel_mask: Tensor, pixel_values: Tensor) -> Tensor:
            return self.net(pixel_values * pixel_mask[:, None, :8, :8])

    e = cl.explain(Masked(), {"pixel_mask": torch.ones(1, 9, 9), "pixel_values": torch.rand(1, 3, 8, 8)}, target=1)
    assert e.heatmap().shape == (8, 8)


def test_an_interrupt_while_modules_are_switched_leaves_every_one_training() -> None:
    class Interrupted(nn.ReLU):
        """A signal arrives when this module is switched, as it may between any two."""

        armed = False

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "training" and not value and self.armed:
                raise KeyboardInterrupt

    net = nn.Sequential(nn.Conv2d(3, 6, 3), Interrupted(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    Interrupted.armed = True
    with pytest.raises(KeyboardInterrupt):
        cl.explain(net, torch.rand(1, 3, 8, 8), layer="1", target=1)
    assert all(m.training for m in net.modules()) and not scope._EVALUATING


def test_the_model_dies_with_its_last_reference() -> None:
    net = small()
    seen = weakref.ref(net)
    cl.explain(net, torch.rand(1, 3, 8, 8))
    gc.disable()
    try:
        del net
        assert seen() is None
    finally:
        gc.enable()


def test_one_map_of_many_holds_its_own_numbers_only() -> None:
    many = cl.sweep(small(), torch.rand(1, 3, 8, 8), targets=range(5))
    assert all(e.map.untyped_storage().nbytes() == e.map.numel() * 4 for e in many)


@pytest.mark.parametrize(
    "how, error, says",
    [
        ({"x": torch.rand(3, 8, 8)}, InputError, r"add the batch axis with x\[None\]"),
        ({"layer": True}, LayerError, "a layer is a module, a name"),
        ({"target": "dog"}, TargetError, "no class called 'dog'"),
        ({"target": lambda y: y.argmax(1)}, TargetError, "floating-point scores"),
        ({"target": lambda y: 1.0}, TargetError, "one score a picture"),
        ({"method": "grad"}, MethodError, "Did you mean"),
    ],
)
def test_what_people_try_first_is_refused_with_the_way_out(how: dict[str, Any], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        cl.explain(small(), **{"x": torch.rand(1, 3, 8, 8), **how})


def test_preprocessing_that_was_assumed_is_told() -> None:
    photo = np.zeros((30, 40, 3), np.uint8)
    assert "as for ImageNet" in cl.explain(small(), photo).summary()["notes"]
    own = cl.Preprocess((16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "notes" not in cl.explain(small(), photo, preprocess=own).summary()


def test_a_module_under_two_names_answers_to_both() -> None:
    net = small()
    net.add_module("twin", net[1])  # the same object again
    net.forward = lambda x: nn.Sequential(*list(net)[:5])(x)  # type: ignore[method-assign]
    one, two = cl.sweep(net, torch.rand(1, 3, 8, 8), targets=1, layers=["1", "twin"])
    assert (one.layer, two.layer) == ("1", "twin") and torch.equal(one.map, two.map)


def test_one_layer_with_two_layouts_is_refused() -> None:
    ask = [("1", cl.channels_first), ("1", cl.channels_last)]
    with pytest.raises(InputError, match="two layouts at once"):
        cl.sweep(small(), torch.rand(1, 3, 8, 8), layers=ask)


def test_one_thing_alone_stands_for_a_list_of_it() -> None:
    net, x = small(), torch.rand(1, 3, 8, 8)
    assert [e.layer for e in cl.sweep(net, x, targets=3, methods="hirescam", layers="1")] == ["1"]  # type: ignore[arg-type]
    assert len(cl.sweep(net, x, targets=(t for t in (1, 2)))) == 2  # type: ignore[arg-type]
    assert survey(net, Inputs((x,))).choice.name == "1"
