"""A model's own forward as a graph, for nets that use functions where others have modules."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from camlucida.core.scope import untouched
from camlucida.gap.kinds import ADAPTIVE, ELEMENTWISE, FLAT, OVER_CLASSES, PASSING, is_pointwise
from camlucida.gap.pooling import GlobalAveragePooling

_TRACING = threading.Lock()  # a trace patches torch.nn.Module for as long as it takes
_SAME: dict[Any, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, F.gelu: nn.GELU, F.silu: nn.SiLU, F.elu: nn.ELU,
    torch.tanh: nn.Tanh, "tanh": nn.Tanh, torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid, F.relu6: nn.ReLU6,
    torch.flatten: nn.Flatten, "flatten": nn.Flatten, "view": nn.Flatten, "reshape": nn.Flatten,
    torch.mean: GlobalAveragePooling, "mean": GlobalAveragePooling, F.hardswish: nn.Hardswish,
    F.softmax: lambda: nn.Softmax(1), F.log_softmax: lambda: nn.LogSoftmax(1),
    "softmax": lambda: nn.Softmax(1), "log_softmax": lambda: nn.LogSoftmax(1),
}  # fmt: skip
_SIZED: dict[Any, Callable[..., nn.Module]] = {
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_avg_pool3d: nn.AdaptiveAvgPool3d,
}


def traced_steps(net: nn.Module) -> tuple[fx.Graph, list[tuple[str, nn.Module]], list[fx.Node]] | None:
    """The graph of the model, and its last nodes as modules, as far back as they are a chain of known ones."""
    try:
        with _TRACING, untouched(net, torch.device("cpu")):
            graph = fx.Tracer().trace(net)
    except Exception:  # a forward that asks for numbers cannot be traced
        return None
    steps, nodes = list[tuple[str, nn.Module]](), list[fx.Node]()
    node: Any = next(iter(reversed(graph.nodes))).args[0]
    while isinstance(node, fx.Node) and node.args and (module := _as_module(net, node)) is not None:
        steps.insert(0, (node.name, module))
        nodes.insert(0, node)
        node = node.args[0]
    return graph, steps, nodes


def _as_module(net: nn.Module, node: fx.Node) -> nn.Module | None:
    """What a node does as a module; a wrong guess shows when the reading is proved."""
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        known = (*ELEMENTWISE, *OVER_CLASSES, *PASSING, *ADAPTIVE, *FLAT, nn.Linear, nn.BatchNorm1d)
        return module if isinstance(module, known) or is_pointwise(module) else None
    if node.target is F.dropout:
        return nn.Dropout(float(_argument(node, 1, "p", 0.5)))
    if node.target in _SIZED:
        return _SIZED[node.target](_argument(node, 1, "output_size", 1))
    return _SAME[node.target]() if node.target in _SAME else None


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def up_to(net: nn.Module, graph: fx.Graph, node: fx.Node) -> nn.Module:
    """The model as far as what ``node`` is given."""
    next(iter(reversed(graph.nodes))).args = (node.args[0],)
    for unused in reversed(list(graph.nodes)):
        if unused.op not in ("placeholder", "output") and not unused.users:
            graph.erase_node(unused)
    return fx.GraphModule(net, graph)
