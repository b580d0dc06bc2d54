"""Judging: accuracy, calibration and temperature, each against numbers counted by hand or known beforehand."""

import math
from pathlib import Path

import drawn
import pytest
import torch
from torch import Tensor, nn

from camlucida.errors import InputError, ModelError
from camlucida.frame import Preprocess
from camlucida.gap import GAPConv, GAPLinear, GAPNet, GAPRectified, small_gap
from camlucida.gap.calibrate import calibrated, can_be_calibrated
from camlucida.gap.data import OTHER, Table, read_table
from camlucida.gap.evaluate import Evaluation, evaluate, judge, prepared

LOOK = Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3, fit="squash")


def honest(count: int, factor: float = 1.0, k: int = 4) -> Evaluation:
    """Targets drawn from the very probabilities that the logits stand for, the logits then times ``factor``."""
    g = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(count, k, generator=g)
    return Evaluation(factor * logits, torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0])


def slow_calibration_error(e: Evaluation) -> float:
    total, n = 0.0, 0
    rows = [
        (row, y) for row, y in zip(e.logits.double().softmax(1).tolist(), e.targets.tolist(), strict=True) if y >= 0
    ]
    for b in range(15):
        inside = [(max(r), float(r.index(max(r)) == y)) for r, y in rows if b / 15 <= max(r) < (b + 1) / 15 + (b == 14)]
        if inside:
            sure, right = (sum(part) / len(inside) for part in zip(*inside, strict=True))
            total += len(inside) * abs(sure - right)
        n += len(inside)
    return total / n


def test_accuracy_counts_known_classes_only() -> None:
    logits = torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 2, 0], [5, 0, 0]])
    seen = Evaluation(logits, torch.tensor([0, 1, 0, 1, OTHER]))
    assert len(seen) == 5 and len(seen.known) == 4 and len(seen.other) == 1
    assert seen.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert seen.top1 == 0.75 and seen.per_class[:2].tolist() == [0.5, 1.0] and math.isnan(seen.per_class[2])
    assert seen.mean_per_class == 0.75
    p = logits.double().softmax(1)
    expected = -sum(math.log(p[i, y]) for i, y in enumerate((0, 1, 0, 1))) / 4
    assert seen.loss == pytest.approx(expected)
    assert seen.confidence.tolist() == pytest.approx(p.amax(1).tolist())


def test_without_any_known_picture_nothing_is_claimed() -> None:
    seen = Evaluation(torch.randn(3, 2), torch.full((3,), OTHER))
    values = (seen.top1, seen.mean_per_class, seen.loss, seen.calibration_error, seen.reached())
    assert all(map(math.isnan, values)) and seen.temperature() == 1.0


def test_the_calibration_error_is_that_of_fifteen_bins() -> None:
    for seen in (honest(500), honest(500, 3.0), Evaluation(torch.tensor([[90.0, 0.0]]), torch.tensor([1]))):
        assert seen.calibration_error == pytest.approx(slow_calibration_error(seen), abs=1e-5)
    assert honest(20_000).calibration_error < 0.02


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.4])
def test_the_temperature_is_the_factor_of_overconfidence(factor: float) -> None:
    seen = honest(5000, factor)
    assert seen.temperature() == pytest.approx(factor, rel=0.06)
    with torch.inference_mode():
        assert Evaluation(seen.logits.clone(), seen.targets).temperature() == pytest.approx(factor, rel=0.06)


def test_pictures_of_other_things_do_not_change_the_temperature() -> None:
    seen = honest(2000, 2.0)
    more = Evaluation(
        torch.cat([seen.logits, 9 * torch.randn(500, 4)]), torch.cat([seen.targets, torch.full((500,), -1)])
    )
    assert more.temperature() == pytest.approx(seen.temperature(), rel=1e-6)


def test_the_temperature_stays_within_bounds_where_all_is_right_or_wrong() -> None:
    logits = torch.eye(3) * 5
    assert 1 / 20 <= Evaluation(logits, torch.arange(3)).temperature() < 0.5
    assert Evaluation(logits, (torch.arange(3) + 1) % 3).temperature() == pytest.approx(20.0, rel=0.05)


def test_most_pictures_reach_what_is_called_confident() -> None:
    seen = honest(1000)
    least = seen.reached(0.95)
    assert 0.94 <= float((seen.confidence >= least).float().mean()) <= 0.96
    alone = Evaluation(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert alone.reached() == math.floor(1e4 / (1 + math.exp(-1))) / 1e4 <= float(alone.confidence)


def heads() -> list[nn.Module]:
    return [GAPLinear(6, 3), GAPConv(6, 3), GAPLinear(6, 3, bias=False)]


@pytest.mark.parametrize("head", heads(), ids=["linear", "conv", "without bias"])
def test_a_calibrated_net_divides_logits_and_class_maps(head: nn.Module) -> None:
    net, x = GAPNet(nn.Conv2d(3, 6, 3), head).eval(), torch.rand(2, 3, 8, 8)  # type: ignore[arg-type]
    before, maps = net(x), net.class_maps(x)
    made = calibrated(net, 2.5)
    assert torch.allclose(made(x), before / 2.5, atol=1e-6) and torch.allclose(
        made.class_maps(x), maps / 2.5, atol=1e-6
    )
    assert torch.equal(net(x), before) and not made.training


def test_an_overconfident_net_is_made_honest() -> None:
    seen = honest(4000, 3.0)
    net = GAPNet(nn.Identity(), GAPLinear(4, 4, bias=False))
    net.head.get_parameter("linear.weight").data.copy_(torch.eye(4))
    inputs = seen.logits[:, :, None, None], seen.targets
    before = judge(net.eval(), inputs)
    after = judge(calibrated(net, before.temperature()), inputs)
    assert before.calibration_error > 0.1 and after.calibration_error < 0.02
    assert after.temperature() == pytest.approx(1.0, abs=0.01) and after.top1 == before.top1


def test_other_nets_and_temperatures_are_refused() -> None:
    rectified = GAPNet(nn.Conv2d(3, 6, 3), GAPRectified(6, 3))
    assert not can_be_calibrated(rectified) and not can_be_calibrated(nn.Flatten())
    with pytest.raises(ModelError, match="linear head"):
        calibrated(rectified, 2.0)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="temperature"):
            calibrated(GAPNet(nn.Identity(), GAPLinear(3, 2)), wrong)


def test_pictures_are_judged_in_parts_and_what_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_table(drawn.folder(tmp_path / "set", 4))
    (tmp_path / "bad.png").write_text("no")
    mixed = Table((*table.files[:5], str(tmp_path / "bad.png"), *table.files[5:]), (*table.targets[:5], 0, *table.targets[5:]), table.classes)  # fmt: skip  # noqa: E501
    net = small_gap(3, width=0.25).eval()
    whole = judge(net, prepared(table, LOOK)[0])
    monkeypatch.setattr("camlucida.gap.evaluate._BATCH", 1)  # parts of four pictures
    found = evaluate(net, mixed, LOOK)
    assert torch.allclose(found.logits, whole.logits, atol=1e-5) and torch.equal(found.targets, whole.targets)
    assert len(found.faults) == 1 and "bad.png" in found.faults[0]
    with pytest.raises(InputError, match=r"bad\.png"):
        evaluate(net, Table((str(tmp_path / "bad.png"),) * 9, (0,) * 9, ("x",)), LOOK)
    with pytest.raises(InputError, match="no picture"):
        evaluate(net, Table((), (), ("x",)), LOOK)


class Wordy(nn.Module):
    """Answers with more than logits."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x.flatten(1)[:, :2], "features": x}


def test_a_net_may_answer_with_more_than_logits() -> None:
    x = torch.rand(3, 3, 4, 4)
    assert torch.equal(judge(Wordy(), (x, torch.zeros(3, dtype=torch.long))).logits, x.flatten(1)[:, :2])


def slow_temperature(e: Evaluation) -> float:
    """The best of a fine grid."""
    tried = torch.linspace(-math.log(20), math.log(20), 2001, dtype=torch.float64).exp().tolist()
    return min(tried, key=lambda t: Evaluation(e.logits.double() / t, e.targets).loss)


@pytest.mark.parametrize("factor", [0.03, 0.06, 0.09, 0.12, 0.3, 15.0])
def test_the_temperature_of_faint_and_of_loud_logits_is_the_best_there_is(factor: float) -> None:
    for count in (20, 200):
        seen = honest(count, factor)
        assert seen.temperature() == pytest.approx(slow_temperature(seen), rel=0.01)


def test_answers_that_are_no_numbers_are_refused_and_never_is_an_answer() -> None:
    x, y = torch.ones(3, 2, 1, 1), torch.zeros(3, dtype=torch.long)
    x[1] = float("nan")
    with pytest.raises(ModelError, match="answers 1 of 3 pictures with NaN or infinity"):
        judge(nn.Flatten(), (x, y))
    x[1, 0], x[1, 1] = 1.0, -math.inf
    assert judge(nn.Flatten(), (x, y)).top1 == 1.0


def test_twenty_thousand_classes_need_no_table_of_their_square() -> None:
    k = 20_000
    seen = Evaluation(torch.zeros(3, k).index_fill_(1, torch.tensor([7]), 1.0), torch.tensor([7, k - 1, OTHER]))
    assert seen.mistaken.tolist() == [[k - 1, 7, 1]] and seen.top1 == 0.5
    assert seen.counts.sum() == 2 and seen.per_class[7] == 1.0 and seen.per_class[k - 1] == 0.0


def test_mistakes_are_what_lies_beside_the_diagonal_most_first() -> None:
    seen = honest(300)
    table = seen.confusion.clone().fill_diagonal_(0)
    found = seen.mistaken.tolist()
    assert [n for _, _, n in found] == sorted((n for n in table.flatten().tolist() if n), reverse=True)
    assert all(table[i, j] == n for i, j, n in found)
    assert torch.equal(seen.counts, seen.confusion.sum(1))
    assert torch.equal(seen.per_class, seen.confusion.diagonal() / seen.confusion.sum(1))


def test_each_picture_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_table(drawn.folder(tmp_path / "set", 2))
    bad = [tmp_path / f"bad{i}.png" for i in range(4)]
    for file in bad:
        file.write_text("no")
    mixed = Table((*map(str, bad), *table.files), (0,) * 4 + table.targets, table.classes)
    monkeypatch.setattr("camlucida.gap.evaluate._BATCH", 1)  # a whole part that cannot be read
    found = evaluate(small_gap(3, width=0.25).eval(), mixed, LOOK)
    assert [b.name in f for b, f in zip(bad, found.faults, strict=True)] == [True] * 4
