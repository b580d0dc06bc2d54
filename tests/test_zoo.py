"""The sweep over whole zoos: judges soundly, loses one line at most, goes on where it stopped."""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
LIMITS = argparse.Namespace(limit_seconds=60, limit_gigabytes=6)


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import zoo

    return zoo


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def transposed() -> nn.Module:
    """Its last grid is read the wrong way round, as by a layout that is wrong."""

    class Turned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.transpose(2, 3).contiguous()

    return nn.Sequential(nn.Conv2d(3, 6, 5, 4, 2), Turned(), nn.Conv2d(6, 6, 1), nn.ReLU(), *list(plain())[4:6])


def entry(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], name: str = "net") -> Any:
    monkeypatch.setitem(zoo.zoo_nets._BUILD, "own", lambda _: (make(), (3, 64, 64)))
    return zoo.Entry("own", "family", name)


def test_a_sound_net_is_good_and_its_cost_is_told(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made = lambda: zoo.zoo_nets.built(plain)  # noqa: E731
    line = zoo.guarded(entry(zoo, monkeypatch, made), 60, 6 * 2**30)
    assert (line["status"], line["layer"], line["map"], line["whole"]) == ("good", "3", [16, 16], True), line
    assert line["passes"] == 1 and line["forwards"] > 0 and line["parameters"] == 653


def test_a_grid_the_wrong_way_round_is_misplaced(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    line = zoo.guarded(entry(zoo, monkeypatch, lambda: zoo.zoo_nets.built(transposed)), 60, 6 * 2**30)
    assert line["status"] == "misplaced", line


def test_a_last_layer_of_zeros_is_refused_with_the_reason(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead() -> nn.Module:
        net = plain().eval()
        nn.init.zeros_(net[-1].weight)  # type: ignore[index,arg-type]
        return net

    line = zoo.guarded(entry(zoo, monkeypatch, dead), 60, 6 * 2**30)
    assert line["status"] == "refused" and "starts at zero" in line["why"], line


def sleep() -> None:
    time.sleep(60)


def swell() -> None:
    kept = bytearray(os.urandom(1 << 20)) * 600
    time.sleep(60)
    del kept


def fail() -> None:
    raise ValueError("no such net")


@pytest.mark.parametrize(
    "make, status",
    [(lambda: os._exit(3), "crashed"), (sleep, "out of time"), (swell, "out of memory"), (fail, "not built")],
)
def test_a_net_that_dies_is_one_line(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], status: str
) -> None:
    limit = 1 if status == "out of time" else 30
    here = zoo._memory(os.getpid())
    assert zoo.guarded(entry(zoo, monkeypatch, make), limit, here + 3e8)["status"] == status


def test_a_sweep_goes_on_where_it_stopped(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(zoo, "guarded", lambda e, *_: looked.append(e.model) or {"status": "good", "seconds": 1})
    monkeypatch.setattr(zoo, "_versions", lambda: {"torch": "2"})
    nets, lines = [zoo.Entry("own", "f", n) for n in "abc"], tmp_path / "lines.jsonl"
    zoo.sweep(nets[:1], lines, LIMITS)
    lines.write_text(lines.read_text() + '{"source": "own", "model": "b", "sta', encoding="utf-8")  # killed there
    zoo.sweep(nets, lines, LIMITS)
    assert looked == ["a", "b", "c"] and [line["model"] for line in zoo.done(lines)] == ["a", "b", "c"]
    assert "own/c: good 1 s" in capsys.readouterr().out


def test_weights_are_left_undrawn_and_filled(zoo: ModuleType) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big, self.norm = nn.Linear(400, 300), nn.BatchNorm2d(7)
            self.zero, self.gain = nn.Linear(400, 3), nn.Parameter(1e-6 * torch.ones(7))
            self.kernel = nn.Conv2d(4, 4, 5)
            nn.init.zeros_(self.zero.weight)
            nn.init.trunc_normal_(self.big.weight, std=0.02)

    net = zoo.zoo_nets.built(Own)
    assert float(net.big.weight.detach().std()) == pytest.approx(0.7 / math.sqrt(400), rel=0.02)
    assert (
        float(net.zero.weight.detach().std()) > 0.01 and not net.big.bias.any() and bool((net.norm.weight == 1).all())
    )
    assert bool((net.gain == 1).all()) and not net.training
    assert torch.equal(net.kernel.weight, net.kernel.weight.flip(2)) and float(net.kernel.weight.detach().std()) > 0.05


def test_the_draws_cost_nothing_and_come_back(zoo: ModuleType) -> None:
    with zoo.zoo_nets.Undrawn() as undrawn:
        made = torch.ones(3)
        assert made.normal_() is made and made.mul_(5) is made and torch.equal(made, torch.ones(3))
        assert torch.equal(torch.ones(3).mul_(5), torch.full((3,), 5.0)) and len(undrawn.kept) == 1
    assert not torch.equal(made.normal_(), torch.ones(3))


class Row(nn.Module):
    """Blocks made alike but for the share of branches that training drops, one that is not, and a head."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        wide = [4, 4, 4, 4, 6, 4]
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, n, 1), nn.ReLU(), nn.Conv2d(n, 4, 1)) for n in wide)
        self.stem, self.head, self.counts = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 5), counts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = x + (self.blocks[i] if self.counts else block)(x)
        return self.head((x + self.blocks[5](x) if self.counts else x).mean((2, 3)))


def test_rows_of_blocks_made_alike_lose_all_but_two(zoo: ModuleType) -> None:
    net = zoo.zoo_nets.built(lambda: Row(False), short=True)
    assert [block[0].out_channels for block in net.blocks] == [4, 4, 6, 4]
    assert len(zoo.zoo_nets.built(lambda: Row(False)).blocks) == 6


@pytest.mark.parametrize("counts", [False, True])
def test_a_net_that_counts_its_blocks_is_asked_whole(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    made = lambda e: (zoo.zoo_nets.built(lambda: Row(counts), e.short), (3, 64, 64))  # noqa: E731
    monkeypatch.setitem(zoo.zoo_nets._BUILD, "own", made)
    line = zoo.look(zoo.Entry("own", "family", "net", short=True))
    assert line["status"] == "good" and line.get("short", False) is not counts


def test_a_quick_choice_that_a_complete_look_does_not_make_is_an_error(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from camlucida.core import layers

    real = layers.Survey.choice.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(layers.Survey, "choice", property(lambda s: s.places[0] if s.complete else real(s)))
    line = zoo.mapped(zoo.zoo_nets.built(plain), torch.randn(1, 3, 64, 64))
    assert (line["status"], line["layer"], line["why"]) == ("error", "3", "a complete look chooses 0")


def test_parts_of_a_sweep_are_the_whole_of_it(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [zoo.Entry("timm", "f", name) for name in "abcde"]
    monkeypatch.setattr(zoo.zoo_nets, "entries", lambda source: nets if source == "timm" else [])
    monkeypatch.setattr(zoo, "sizes", lambda: dict(zip("abcde", (1, 2, 3, 4, 5), strict=True)))
    asked = {"all": True, "only": "", "limit_parameters": math.inf, "whole_parameters": 3}
    parts = [zoo.wanted(argparse.Namespace(part=f"{i}/2", **asked)) for i in (0, 1)]
    assert sorted(e.model for part in parts for e in part) == list("abcde")
    assert {e.model for part in parts for e in part if e.short} == {"d", "e"}


def test_configurations_lose_depth_and_keep_width(zoo: ModuleType, transformers: Any) -> None:
    config = transformers.SwinConfig()
    zoo.zoo_nets._shrink(config)
    assert list(config.depths) == [2, 2, 3, 2] and config.embed_dim == 96
    both = transformers.CLIPConfig()
    zoo.zoo_nets._shrink(both)
    assert both.vision_config.num_hidden_layers == 2 and both.vision_config.hidden_size == 768


def test_the_page_counts_every_net_once_and_names_each_exception(zoo: ModuleType) -> None:
    good = {
        "source": "timm", "family": "f", "model": "a", "status": "good", "parameters": 2_000_000, "layer": "blocks",
        "layout": "channels first", "map": [7, 7], "forwards": 2.5, "seconds": 3.0, "versions": {"timm": "1"},
    }  # fmt: skip
    odd = {**good, "model": "b", "status": "refused", "why": "a | b"}
    page = zoo.page([{**odd, "model": "a"}, odd, good])
    assert "| timm | 1 | 2 | 1 | 1 |" in page and "| timm/b | refused | `blocks` | a \\| b |" in page
    assert "| timm/a | 2.0 M | `blocks` | channels first | 7×7 | 2.5 | 3.0 |" in page and "timm/a | refused" not in page


def test_the_page_is_the_one_that_the_lines_make(zoo: ModuleType) -> None:
    lines = list(zoo.done(zoo.LINES))
    assert all(json.dumps(line) for line in lines) and zoo.PAGE.read_text(encoding="utf-8") == zoo.page(lines)
