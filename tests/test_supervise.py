"""Maps inside a training loop: the map itself, and the gradients that flow through it."""

import nets
import pytest
import torch
from fingerprint import TABLES
from replicas import apart
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import LayerError, MethodError
from camlucida.registry import list_methods

READING = [
    m.name
    for m in list_methods().values()
    if m.needs in ("gradient", "activation") and m.at == "layer" and m.differentiable
]


@pytest.mark.parametrize("method", READING)
def test_map_is_that_of_explain(method: str) -> None:
    net = nets.smooth_tail()
    x = net.x(3)
    output, found = cl.supervised(net, x, target=cl.classes([1, 0, 2]), method=method, layer=net.layer)
    e = cl.explain(net, x, target=cl.classes([1, 0, 2]), method=method, layer=net.layer)
    assert apart(found.detach(), e.map) < 1e-10 and torch.equal(output.detach(), net(x).detach())


@pytest.mark.parametrize("build", [nets.smooth_tail, nets.channels_last_net, lambda: nets.token_net(2)])
def test_gradients_flow_to_every_parameter_and_are_those_of_finite_differences(build) -> None:
    net = build()
    x, target = net.x(2), cl.classes([1, 0])

    def loss() -> Tensor:
        return cl.supervised(net, x, target=target)[1].square().sum()

    loss().backward()
    for p in (next(net.parameters()), list(net.parameters())[-2]):
        at = tuple(int(i) for i in torch.nonzero(p.grad.abs() == p.grad.abs().max())[0])
        kept, step = p.grad[at].item(), 1e-5
        ends = []
        for way in (1, -1):
            with torch.no_grad():
                p[at] += way * step
            ends.append(loss().item())
            with torch.no_grad():
                p[at] -= way * step
        assert abs((ends[0] - ends[1]) / (2 * step) - kept) < 1e-5 * abs(kept)


def test_the_model_keeps_its_mode_and_no_hook_is_left() -> None:
    net = nets.biased_tail().train()
    before = net.tail[1].running_mean.clone()
    cl.supervised(net, net.x(4), target=1, layer=net.layer)
    assert net.training and not torch.equal(before, net.tail[1].running_mean)  # it trains: its statistics move
    assert not any(getattr(m, table) for m in net.modules() for table in TABLES)


def test_a_plain_loss_beside_the_map_gives_its_usual_gradients() -> None:
    one, two = nets.smooth_tail(), nets.smooth_tail()
    x = one.x(3)
    y, _ = cl.supervised(one, x, target=1, layer=one.layer)
    nn.functional.cross_entropy(y, torch.tensor([1, 2, 0])).backward()
    nn.functional.cross_entropy(two(x), torch.tensor([1, 2, 0])).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_works_where_the_next_layer_writes_in_place() -> None:
    there, not_there = nets.inplace_pair()
    maps = [cl.supervised(n, n.x(2), target=1, layer="features.0")[1] for n in (there, not_there)]
    assert torch.equal(*maps)


def test_a_method_that_asks_again_and_a_layer_off_the_path_are_refused() -> None:
    net = nets.smooth_tail()
    with pytest.raises(MethodError, match="Score-CAM is not differentiable here"):
        cl.supervised(net, net.x(1), method="scorecam", layer=net.layer)
    with pytest.raises(MethodError, match="EigenGrad-CAM is not differentiable here: a loss could"):
        cl.supervised(net, net.x(1), method="eigengradcam", layer=net.layer)
    vit = nets.token_net(2)
    with pytest.raises(LayerError, match="no layer"):
        cl.supervised(vit, vit.x(1), layer="nowhere")
    twice = nn.Sequential(relu := nn.ReLU(), nn.Conv2d(2, 3, 3), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(LayerError, match="ran twice"):
        cl.supervised(twice, torch.rand(1, 2, 5, 5), layer="0")
    assert not relu._forward_hooks
