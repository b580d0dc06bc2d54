"""The graph of a pass tells which tensors all the evidence goes through, and which are only a part of it."""

import torch
from torch import Tensor, nn

from camlucida.core.trunk import Graph


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def test_what_is_on_every_path_is_a_neck_and_a_branch_is_none() -> None:
    x = leaf(4)
    trunk = x.exp()
    branch, other = trunk.sin(), trunk.cos()
    joined = branch * other
    graph = Graph(joined.sum(), [])
    assert [graph.neck(t) for t in (trunk, branch, other, joined)] == [True, False, False, True]


def test_a_residual_path_goes_around_what_it_goes_around() -> None:
    x = leaf(4)
    trunk = x.exp()
    inner = trunk.sin().tanh()
    graph = Graph((trunk + inner).sum(), [])
    assert graph.neck(trunk) and not graph.neck(inner)


def test_a_long_way_round_counts_as_much_as_a_short_one() -> None:
    """Whatever order the nodes are met in: the way round has more steps here, and fewer there."""
    for around, through in ((1, 9), (9, 1)):
        a = b = leaf(4).exp()
        for _ in range(around):
            a = a.sin()
        for _ in range(through):
            b = b.cos()
        graph = Graph((a + b).sum(), [])
        assert not graph.neck(a) and not graph.neck(b)


def test_weights_are_no_way_into_the_net() -> None:
    x, weight, gate = leaf(4), leaf(4), leaf(4)
    made = (x * weight).exp()
    score = (made * gate.sin()).sum()
    assert Graph(score, [weight, gate]).neck(made)
    assert not Graph(score, [weight]).neck(made)  # as another picture would be


def test_two_pictures_have_their_necks_where_they_have_met() -> None:
    x, y = leaf(4), leaf(4)
    one, two = x.exp(), y.exp()
    both = one + two
    graph = Graph(both.sin().sum(), [])
    assert [graph.neck(t) for t in (one, two, both)] == [False, False, True]


def test_one_of_several_outputs_is_not_all_of_it() -> None:
    one, two = leaf(6).exp().split(3)
    assert not Graph((one * two).sum(), []).neck(one)
    assert Graph(one.sum(), []).neck(one)


def test_what_the_score_does_not_come_from_is_no_neck() -> None:
    x = leaf(4)
    unused = x.cos()
    assert not Graph(x.sin().sum(), []).neck(unused)
    assert not Graph(torch.ones(4).sum(), []).neck(x)


def test_what_is_only_put_together_again_is_not_parted() -> None:
    x = torch.randn(2, 6, 4, requires_grad=True)
    made = x.sin()
    again = torch.cat([part.reshape(6, 4) for part in made.split(1)])
    assert not Graph(again.exp().sum(), []).parted(made)
    made = x.sin()
    one, two = made.split(1)
    assert Graph((one.reshape(6, 4) * two.reshape(6, 4)).sum(), []).parted(made)


def test_keys_and_values_in_one_are_parted_and_a_class_token_is_not() -> None:
    tokens = leaf(1, 5, 4).exp()
    kv = nn.Linear(4, 8)(tokens)
    key, value = kv.reshape(1, 5, 2, 4).permute(2, 0, 1, 3).unbind(0)
    read = (key.softmax(1) * value).sum()
    assert Graph(read, []).parted(kv)
    for score in (tokens[:, 0].sum(), tokens.sin().sum(), (tokens[:, 0] * tokens[:, 1:].mean(1)).sum()):
        assert not Graph(score, []).parted(tokens)


def test_graphs_may_be_deeper_than_the_stack() -> None:
    x = made = leaf(1)
    for _ in range(3000):
        made = made + 1
    assert Graph(made.sum(), []).neck(made)
    del x
