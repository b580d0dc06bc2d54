"""The trunk: the layers that all the evidence goes through on its way from the picture to the score.

Told by the graph of the pass, not by names: a layer is a *neck* where no path from the picture to the score goes around
it. A branch, a gate, a query or a key is none, and a map of it would show a part of the evidence as if it were all.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from camlucida.core.moves import kind_of

Node: TypeAlias = Any  # of the graph that autograd recorded; a set of them holds each by its identity

_VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "T", "Clone", "Unsqueeze", "Squeeze", "Expand")


class Graph:
    """What a score was made of, as far as a picture takes part in it: what does not begin with a weight.

    >>> import torch
    >>> x, weight = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> a = x * weight
    >>> b, c = a.exp(), a.sin()
    >>> graph = Graph((b + c).sum(), [weight])
    >>> [graph.neck(t) for t in (a, b, c)]
    [True, False, False]
    """

    def __init__(self, score: Tensor, weights: Iterable[Tensor]) -> None:
        order = _from_pictures(score.grad_fn, {id(w) for w in weights})
        self._readers: dict[Node, list[tuple[Node, int]]] = {node: [] for node in order}
        for node in order:
            for below, number in _below(node):
                if below in self._readers:
                    self._readers[below].append((node, number))
        self._necks = _necks(order, self._readers)

    def neck(self, tensor: Tensor) -> bool:
        """Whether every path from the picture to the score goes through a tensor, and through all of it."""
        node = tensor.grad_fn
        return node in self._necks and {number for _, number in self._readers[node]} <= {tensor.output_nr}

    def parted(self, tensor: Tensor) -> bool:
        """Whether a tensor is taken apart before anything is made of it, as queries, keys and values are; not where the
        parts are only put together again, as those of several pictures may be.
        """
        node = tensor.grad_fn
        while node in self._readers and len({reader for reader, _ in self._readers[node]}) == 1:
            node = self._readers[node][0][0]
            if len({number for _, number in self._readers[node]}) > 1:
                ends = {self._past_views(reader) for reader, _ in self._readers[node]}
                return len(ends) > 1 or kind_of(next(iter(ends))) not in ("Cat", "Stack")
            if kind_of(node) not in _VIEWS:
                return False
        return False

    def _past_views(self, node: Node) -> Node:
        """What first makes something of a node's numbers, where only one thing does."""
        while kind_of(node) in _VIEWS and len({reader for reader, _ in self._readers[node]}) == 1:
            node = self._readers[node][0][0]
        return node


def _below(node: Node) -> Iterator[tuple[Node, int]]:
    return ((below, number) for below, number in node.next_functions if below is not None)


def _from_pictures(top: Node, weights: Collection[int]) -> list[Node]:
    """What the score was made of that a picture takes part in, each after all that it was made of itself; without
    recursion, for graphs are deeper than Python's stack.
    """
    order: list[Node] = []
    live: dict[Node, bool | None] = {}
    waiting = [] if top is None else [top]
    while waiting:
        node = waiting[-1]
        if node not in live:
            live[node] = None
            waiting.extend(below for below, _ in _below(node) if below not in live)
            continue
        waiting.pop()
        if live[node] is None:
            live[node] = _picture(node, weights) or any(live[below] for below, _ in _below(node))
            order += [node] * bool(live[node])
    return order


def _picture(node: Node, weights: Collection[int]) -> bool:
    """Whether a node is where recording began, with something that is no weight."""
    variable = getattr(node, "variable", None)
    return variable is not None and id(variable) not in weights


def _necks(order: Sequence[Node], readers: Mapping[Node, Sequence[tuple[Node, int]]]) -> set[Node]:
    """The nodes that no edge goes past, when all stand in the order of their making."""
    at = {node: i for i, node in enumerate(order)}
    ahead = max((i for node, i in at.items() if getattr(node, "variable", None) is not None), default=0)
    necks = set()  # before the last of several beginnings there is none
    for i, node in enumerate(order):
        if i >= ahead:
            necks.add(node)
        ahead = max([ahead, *(at[reader] for reader, _ in readers[node])])
    return necks
