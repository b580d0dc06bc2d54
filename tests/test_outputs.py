"""Parts of a model's answer: found by key, attribute, place and function, and carried through every kind of method."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import nets
import pytest
import torch
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.outputs import chosen, told
from camlucida.errors import TargetError

A, B = torch.zeros(2, 3), torch.ones(2, 4)
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Result:
    first: Tensor
    second: Tensor


@pytest.mark.parametrize("which", ["second", lambda o: getattr(o, "second", None) if hasattr(o, "second") else B])
@pytest.mark.parametrize("output", [{"first": A, "second": B}, Pair(A, B), Result(A, B)], ids=["dict", "pair", "class"])
def test_a_part_is_found_by_name_and_by_function(output: Any, which: Any) -> None:
    assert chosen(output, which) is B


@pytest.mark.parametrize(("place", "part"), [(0, A), (1, B), (-1, B)])
@pytest.mark.parametrize("output", [{"first": A, "second": B}, (A, B), [A, B], Result(A, B)], ids=str)
def test_a_part_is_found_by_place(output: Any, place: int, part: Tensor) -> None:
    assert chosen(output, place) is part
    assert chosen(output, None) is output


@pytest.mark.parametrize("which", ["third", 2, -3])
def test_a_part_that_is_not_there_is_an_error_that_tells_what_is(which: Any) -> None:
    with pytest.raises(TargetError, match=r"no part .*a dict of first \(2, 3\), second \(2, 4\)"):
        chosen({"first": A, "second": B}, which)


@pytest.mark.parametrize("which", [True, 1.5, ["a"]])
def test_what_names_no_part_is_refused(which: Any) -> None:
    with pytest.raises(TargetError, match="output= is"):
        chosen((A, B), which)
    with pytest.raises(TargetError, match="output= is"):
        cl.explain(nn.Flatten(), torch.zeros(1, 1, 2, 2), output=which)


@pytest.mark.parametrize(
    ("output", "words"),
    [(A, "a tensor of shape (2, 3)"), (None, "NoneType"), ({}, "an empty dict"), ("text", "str"),
     ((A, [B, B]), "a tuple of 0 (2, 3), 1 [(2, 4), (2, 4)]"), (Pair(A, 5), "a Pair of first (2, 3), second int"),
     ([{"boxes": A}, {"boxes": B}], "a list of 2, the first a dict of boxes (2, 3)")],
)  # fmt: skip
def test_an_answer_is_told_with_its_shapes(output: Any, words: str) -> None:
    assert told(output) == words


class Two(nn.Module):
    """Two heads' answers in one container; the second is that of ``net``."""

    def __init__(self, net: nets.Net) -> None:
        super().__init__()
        self.features, self.tail = net.features, net.tail

    def forward(self, x: Tensor) -> Any:
        y = self.tail(self.features(x))
        return {"aux": y.flip(1) * 2, "main": y}


@pytest.mark.parametrize("method", ["cam", "gradcam", "scorecam", "occlusion", "integratedgradients"])
def test_output_is_meant_by_every_kind_of_method(method: str) -> None:
    """Closed forms, gradients at a layer and at the input, and answers asked for again."""
    net = nets.gap_linear()
    two, x = Two(net).eval(), net.x(2)
    layer = net.layer if method in ("cam", "gradcam", "scorecam") else None
    found, plain = (
        cl.explain(n, x, target=2, method=method, layer=layer, **more)
        for n, more in ((two, {"output": "main"}), (net, {}))
    )
    assert apart(found.map, plain.map) < 1e-10 and apart(found.scores, plain.scores) < 1e-12
    assert apart(found.logits, plain.logits) == 0 and found.caption() == plain.caption()


def test_output_is_meant_where_the_layer_is_chosen_and_in_sweeps() -> None:
    net = nets.gap_linear()
    two, x = Two(net).eval(), net.x(2)
    asked: dict[str, Any] = {"targets": [0, 1, 2, 3, 4], "methods": ["cam", "hirescam"]}
    found, plain = cl.sweep(two, x, output=1, **asked), cl.sweep(net, x, **asked)
    assert [e.layer for e in found] == [e.layer for e in plain]
    assert max(apart(f.map, p.map) for f, p in zip(found, plain, strict=True)) < 1e-10
    other = cl.explain(two, x, target=0, output="aux", layer=net.layer)
    assert apart(other.map, 2 * cl.explain(net, x, target=4, layer=net.layer).map) < 1e-10


def test_combinations_mean_it_too() -> None:
    net = nets.gap_linear()
    two, x = Two(net).eval(), net.x(1)
    found, plain = (cl.smooth(n, x, target=1, samples=2, **more) for n, more in ((two, {"output": "main"}), (net, {})))
    assert apart(found.map, plain.map) < 1e-10


def test_several_candidates_say_that_output_chooses_and_a_wrong_word_is_no_argument() -> None:
    net = nets.gap_linear()
    with pytest.raises(TargetError, match=r"aux \(1, 5\), main \(1, 5\)\): say which with output="):
        cl.explain(Two(net).eval(), net.x(1))
    with pytest.raises(TargetError, match=r"no part 'mian'.*Did you mean 'main'"):
        cl.explain(Two(net).eval(), net.x(1), output="mian")
    with pytest.raises(TypeError, match="unexpected keyword argument 'ouput'"):
        cl.explain(net, net.x(1), ouput="main")  # type: ignore[call-arg]
