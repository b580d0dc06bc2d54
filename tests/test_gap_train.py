"""Training: it learns, gives the same bits again, also after it was killed, and keeps the best."""

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import drawn
import pytest
import torch
from torch import Tensor, nn

from camlucida.errors import InputError, ModelError, OutputError
from camlucida.frame import Preprocess
from camlucida.gap import GAPLinear, GAPNet, small_gap
from camlucida.gap.augment import Augment
from camlucida.gap.data import OTHER, Table, read_table
from camlucida.gap.recipe import Recipe
from camlucida.gap.state import State, batches, rate
from camlucida.gap.train import Row, Trained, Training, train

LOOK = Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3, fit="squash")
QUICK = Recipe(size=28, epochs=2, batch=8, lr=0.01, average=0.9)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.folder(tmp_path_factory.mktemp("shapes") / "set", 10)


@pytest.fixture
def table(place: Path) -> Table:
    return read_table(place)


def fresh(k: int = 3) -> GAPNet:
    torch.manual_seed(0)
    return small_gap(k, width=0.25)


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def learn(table: Table, recipe: Recipe = QUICK, held: Table | None = None, **also: Any) -> Trained:
    return train(fresh(), table, held, preprocess=LOOK, recipe=recipe, **also)


# ------------------------------------------------------------------------------------------------------------ it learns


def test_it_learns_coloured_shapes_to_the_last_picture(table: Table) -> None:
    pictures, held = table.hold_out(0.2)
    net = fresh()
    done = train(net, pictures, held, preprocess=LOOK, recipe=replace(QUICK, epochs=10))
    assert done.held is not None and done.held.top1 == 1.0 and len(done.held) == 6
    assert same(net, fresh()) and not done.net.training and done.faults == ()
    assert [row["epoch"] for row in done.history] == list(range(1, 11))
    assert done.history[-1]["loss"] < done.history[0]["loss"] and done.history[-1]["held_accuracy"] == 1.0


def test_random_numbers_of_the_caller_are_left_alone_and_do_not_matter(table: Table) -> None:
    net, made = fresh(), list[nn.Module]()
    for seed in (5, 6):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made.append(train(net, table, preprocess=LOOK, recipe=replace(QUICK, epochs=1)).net)
        assert torch.equal(before, torch.get_rng_state())
    assert same(*made)  # dropout and all


def test_the_same_seed_gives_the_same_bits_and_another_one_others(table: Table) -> None:
    once = learn(table).net
    assert same(once, learn(table).net)
    assert not same(once, learn(table, replace(QUICK, seed=1)).net)


def test_each_epoch_has_an_order_of_its_own(table: Table) -> None:
    seen: list[int] = []

    def corner(picture: Tensor) -> Tensor:
        seen.append(id(picture))
        return picture[:, :28, :28] / 255

    learn(table, views=corner)
    assert set(seen[:30]) == set(seen[30:]) and seen[:30] != seen[30:] and len(seen) == 60


@pytest.mark.parametrize("change", [{"optimizer": "sgd"}, {"balance": 0.5}, {"trunk": 0.1}, {"weight_decay": 0.5}])
def test_each_number_of_the_recipe_makes_a_difference(table: Table, change: dict[str, Any]) -> None:
    uneven = table.take(range(3, 30))
    assert not same(learn(uneven, replace(QUICK, epochs=1)).net, learn(uneven, replace(QUICK, epochs=1, **change)).net)


def test_pictures_of_none_of_the_classes_are_taught_as_even_odds(table: Table) -> None:
    mixed = Table(table.files, (OTHER,) * 10 + table.targets[10:], table.classes)
    job = Training(fresh(), mixed, None, LOOK, replace(QUICK, augment=Augment(mix=0.0), smoothing=0.1))
    _, y = job._batch([0, 10, 20], torch.Generator())
    third = 0.1 / 3
    assert torch.allclose(y, torch.tensor([[1 / 3] * 3, [third, 0.9 + third, third], [third, third, 0.9 + third]]))


def test_a_batch_is_normalised_as_the_preprocessing_says(table: Table) -> None:
    still = Augment((1.0, 1.0), 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    job = Training(fresh(), table, None, LOOK, replace(QUICK, size=40, augment=still))
    x, _ = job._batch([4], torch.Generator())
    assert torch.allclose(x[0], (job.shelf.take([4])[0] / 255 - 0.5) / 0.25, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- the steps


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    assert [rate(i, 20, 0.2) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(4, 20, 0.2) == 1.0 and rate(12, 20, 0.2) == pytest.approx(0.5) and 0 < rate(19, 20, 0.2) < 0.02
    assert rate(0, 1, 0.05) == 1.0 and rate(9, 10, 1.0) == 1.0


def test_an_epoch_has_every_picture_once_and_no_batch_of_one() -> None:
    own = torch.arange(17) % 3
    parts = list(batches(own, replace(QUICK, batch=8), torch.Generator().manual_seed(0)))
    assert [len(p) for p in parts] == [8, 8] and len({i for p in parts for i in p}) == 16
    assert [len(p) for p in batches(torch.arange(18) % 3, replace(QUICK, batch=8), torch.Generator())] == [8, 8, 2]


@pytest.mark.parametrize(("balance", "share"), [(1.0, 0.5), (0.5, 1 / 4), (0.0, 0.1)])
def test_balance_draws_classes_in_proportion_to_a_power_of_their_count(balance: float, share: float) -> None:
    own = torch.tensor([0] * 900 + [OTHER] * 100)  # √900 : √100 = 3 : 1
    g = torch.Generator().manual_seed(0)
    drawn_ = [int(own[i]) for p in batches(own, replace(QUICK, balance=balance), g) for i in p]
    assert abs(drawn_.count(OTHER) / len(drawn_) - share) < 0.05


def test_norms_and_biases_do_not_decay_and_the_trunk_has_its_own_pace() -> None:
    net = fresh()
    groups = State(net, replace(QUICK, trunk=0.25)).optimizer.param_groups
    kinds = {(g["weight_decay"], g["pace"], p.dim() > 1) for g in groups for p in g["params"]}
    assert kinds == {(0.05, 0.25, True), (0.0, 0.25, False), (0.05, 1.0, True), (0.0, 1.0, False)}
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))


def test_the_average_follows_at_first_quickly_then_at_its_own_decay() -> None:
    state = State(nn.Linear(1, 1, bias=False), replace(QUICK, average=0.5))
    weight, kept = state.net.weight, []
    for value in (1.0, 2.0, 3.0):
        weight.data.fill_(value)
        state.average.update_parameters(state.net)
        kept.append(state.average.module.weight.item())
    second = 1 + (1 - 2 / 11) * (2 - 1)
    third = second + (1 - 3 / 12) * (3 - second)
    assert kept == pytest.approx([1.0, second, third])
    for _ in range(30):
        state.average.update_parameters(state.net)
    weight.data.fill_(5.0)
    state.average.update_parameters(state.net)
    assert state.average.module.weight.item() == pytest.approx(4.0, abs=1e-3)  # half way, by its own decay


def test_frozen_features_stay_as_they_are(table: Table) -> None:
    net = fresh()
    cold = GAPNet(net.features, net.head, frozen=True)
    done = train(cold, table, preprocess=LOOK, recipe=replace(QUICK, epochs=1))
    assert same(done.net.features, cold.features)  # type: ignore[arg-type]
    assert not same(done.net.head, cold.head)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- taken up again

KILLED = """
import os, signal, sys, torch
sys.path[:0] = [{tests!r}, {src!r}]
torch.set_num_threads(1)
from test_gap_train import QUICK, LOOK, fresh, read_table, replace, train

def watch(step, steps, row=None):
    if step == 2 and row is None and os.path.exists({checkpoint!r}):
        os.kill(os.getpid(), signal.SIGKILL)

train(fresh(), read_table({place!r}), preprocess=LOOK, recipe=replace(QUICK, epochs=3), checkpoint={checkpoint!r},
      watch=watch)
"""


def test_a_run_that_was_killed_goes_on_to_the_same_bits(place: Path, tmp_path: Path) -> None:
    checkpoint, here = tmp_path / "run.pt", Path(__file__).parent
    words = {"tests": str(here), "src": str(here.parent / "src"), "checkpoint": str(checkpoint), "place": str(place)}
    code = KILLED.format(**words)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps: list[tuple[int, bool]] = []

    def watch(step: int, steps_: int, row: Row | None = None) -> None:
        steps.append((step, row is not None))

    recipe = replace(QUICK, epochs=3)
    taken_up = learn(read_table(place), recipe, checkpoint=checkpoint, watch=watch)
    whole = learn(read_table(place), recipe)
    assert steps == 2 * [(1, False), (2, False), (3, False), (4, False), (4, True)]  # the first epoch was done
    assert same(taken_up.net, whole.net)
    assert [r["loss"] for r in taken_up.history] == [r["loss"] for r in whole.history]


def test_a_run_that_is_done_is_only_read(table: Table, tmp_path: Path) -> None:
    done = learn(table, checkpoint=tmp_path / "run.pt")
    again = learn(table, checkpoint=tmp_path / "run.pt", watch=lambda step, steps, row=None: pytest.fail("a step"))
    assert same(done.net, again.net) and done.history == again.history


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"recipe": replace(QUICK, lr=0.02)}, "another recipe or other pictures"),
        ({"recipe": replace(QUICK, augment=Augment(flip=0.0))}, "another recipe"),
        ({"pictures": "fewer"}, "other pictures"),
        ({"preprocess": replace(LOOK, fit="crop")}, "another recipe or other pictures"),
        ({"net": small_gap(3, width=0.5)}, "of another net"),
    ],
    ids=["lr", "views", "pictures", "preprocessing", "net"],
)
def test_a_checkpoint_of_another_run_is_refused(
    table: Table, tmp_path: Path, other: dict[str, Any], expected: str
) -> None:
    file = tmp_path / "run.pt"
    learn(table, replace(QUICK, epochs=1), checkpoint=file)
    kept = file.read_bytes()
    asked = {"net": fresh(), "preprocess": LOOK, "recipe": replace(QUICK, epochs=1), **other}
    if "recipe" in other:
        asked["recipe"] = replace(other["recipe"], epochs=1)
    pictures = table.take(range(1, 30)) if asked.pop("pictures", "") else table
    with pytest.raises(OutputError, match=expected):
        train(asked.pop("net"), pictures, checkpoint=file, **asked)
    assert file.read_bytes() == kept


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>" + b])
def test_a_spoilt_checkpoint_is_refused(table: Table, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "run.pt"
    Training(fresh(), table, None, LOOK, QUICK).save(file)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(OutputError, match="no checkpoint of a training run, or damaged"):
        learn(table, checkpoint=file)


def test_a_checkpoint_can_hold_no_code(table: Table, tmp_path: Path) -> None:
    torch.save({"for": Training, "net": {}}, tmp_path / "run.pt")
    with pytest.raises(OutputError, match="no checkpoint"):
        learn(table, checkpoint=tmp_path / "run.pt")


# ------------------------------------------------------------------------------------------------------------- stopping


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """The accuracy after each epoch as it is told here."""
    told = iter(scores)
    monkeypatch.setattr(Training, "_judged", lambda self: {"held_accuracy": next(told), "held_loss": 1.0})


def test_patience_ends_a_run_and_keeps_the_best(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, held = table.hold_out(0.2)
    recipe = replace(QUICK, epochs=9, patience=2)
    scripted(monkeypatch, [0.5, 0.9, 0.7, 0.8, 1.0])
    stopped = learn(pictures, recipe, held)
    assert len(stopped.history) == 4
    scripted(monkeypatch, [0.5, 0.9])
    job = Training(fresh(), pictures, held, LOOK, recipe)
    job.epoch()
    job.epoch()
    assert same(stopped.net, job.state.average.module) and not job.done


def test_a_run_that_stopped_is_known_from_its_checkpoint(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, held = table.hold_out(0.2)
    recipe = replace(QUICK, epochs=9, patience=1)
    scripted(monkeypatch, [0.9, 0.7, 1.0])
    done = learn(pictures, recipe, held, checkpoint=tmp_path / "run.pt")
    again = learn(pictures, recipe, held, checkpoint=tmp_path / "run.pt")
    assert len(again.history) == 2 and same(done.net, again.net)


def test_without_patience_the_last_epoch_is_kept(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, held = table.hold_out(0.2)
    scripted(monkeypatch, [0.9, 0.1])
    done = learn(pictures, QUICK, held)
    monkeypatch.undo()
    assert same(done.net, learn(pictures).net)


# ----------------------------------------------------------------------------------------------- what cannot be trained


def test_pictures_that_cannot_be_read_are_left_out_and_told(table: Table, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("<html>")
    bad = str(tmp_path / "bad.png")
    mixed = Table((bad, *table.files), (1, *table.targets), table.classes)
    done = learn(mixed, held=Table((*table.files[:3], bad), (0, 0, 0, 1), table.classes))
    assert len(done.faults) == 2 and all("bad.png" in f for f in done.faults)
    assert same(done.net, learn(table).net)


def test_too_few_pictures_are_refused(table: Table) -> None:
    with pytest.raises(InputError, match="10 pictures that can be read are not enough"):
        learn(table.take(range(10)))  # of one class
    with pytest.raises(InputError, match="none of the pictures held out shows one of the classes"):
        learn(table, held=Table(table.files[:2], (OTHER, OTHER), table.classes))


def test_a_net_of_other_classes_or_without_anything_to_learn_is_refused(table: Table) -> None:
    with pytest.raises(ModelError, match=r"the net answers \(8, 5\) where \(8, 3\) is asked"):
        train(fresh(5), table, preprocess=LOOK, recipe=QUICK)
    with pytest.raises(ModelError, match="every parameter of the net is frozen"):
        train(fresh().requires_grad_(False), table, preprocess=LOOK, recipe=QUICK)


def test_a_loss_that_is_no_number_ends_the_run(table: Table) -> None:
    net = fresh()
    net.head.get_parameter("linear.bias").data.fill_(float("nan"))
    with pytest.raises(ModelError, match="the loss is nan in epoch 1: try a smaller lr"):
        train(net, table, preprocess=LOOK, recipe=QUICK)


# --------------------------------------------------------------------------------------------------- views of one's own


def test_views_of_torchvision_take_the_place_of_ours(table: Table, torchvision: ModuleType) -> None:
    from torchvision.transforms import v2

    views = v2.Compose([v2.RandomCrop(28), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])
    done = learn(table, views=views)
    assert same(done.net, learn(table, views=views).net)  # seeded, too
    assert not same(done.net, learn(table).net)


def test_views_get_the_picture_and_must_give_what_was_asked_for(table: Table) -> None:
    seen: list[Tensor] = []

    def corner(picture: Tensor) -> Tensor:
        seen.append(picture)
        return picture[:, :28, :28] / 255

    learn(table, replace(QUICK, epochs=1), views=corner)
    assert len(seen) == 30 and {(p.dtype, tuple(p.shape)) for p in seen} == {(torch.uint8, (3, 35, 35))}
    with pytest.raises(InputError, match=r"views must give floats in \[0, 1\] of shape \(3, 28, 28\); it gave .*uint8"):
        learn(table, views=lambda p: p[:, :28, :28])
    with pytest.raises(InputError, match="it gave list"):
        learn(table, views=lambda p: [p])  # type: ignore[arg-type, return-value]


def test_a_head_of_another_name_is_trained_as_a_whole() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), GAPLinear(4, 2))
    assert {g["pace"] for g in State(net, replace(QUICK, trunk=0.1)).optimizer.param_groups} == {1.0}


# --------------------------------------------------------------------------------------------------- what goes wrong


def test_weights_that_are_no_numbers_any_more_are_never_saved(table: Table, tmp_path: Path) -> None:
    checkpoint, recipe = tmp_path / "run.pt", replace(QUICK, batch=64)  # one step: its loss is still sound

    def spoil(job: Training) -> None:
        step = job.state.step

        def broken(loss: Tensor) -> None:
            step(loss)
            job.state.average.module.head.get_parameter("linear.bias").data.fill_(float("inf"))

        job.state.step = broken  # type: ignore[method-assign]

    job = Training(fresh(), table, None, LOOK, recipe)
    job.epoch()
    job.save(checkpoint)
    spoil(job)
    with pytest.raises(ModelError, match="the weights are no numbers any more in epoch 2"):
        job.epoch()
    assert len(job.history) == 1


def test_patience_without_anything_to_judge_by_is_refused(table: Table) -> None:
    with pytest.raises(InputError, match="patience waits for a better epoch on pictures held out"):
        learn(table, replace(QUICK, patience=2))


def test_a_picture_that_vanishes_while_training_is_named(table: Table, tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(Path(table.files[0]).read_bytes())
    job = Training(fresh(), Table((str(own), *table.files), (0, *table.targets), table.classes), None, LOOK, QUICK)
    job.shelf.kept.clear()  # as if there were no room for it
    own.unlink()
    with pytest.raises(InputError, match=r"cannot be read any more: .*own\.png"):
        job.epoch()


def test_why_no_picture_can_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0 pictures .* not enough.*absent\.png: no such file"):
        learn(Table((str(tmp_path / "absent.png"),) * 2, (0, 1), ("a", "b")))


def test_a_full_disk_is_told_and_leaves_the_checkpoint_as_it_was(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, file = Training(fresh(), table, None, LOOK, QUICK), tmp_path / "run.pt"
    job.save(file)
    before = file.read_bytes()

    class Full(io.FileIO):
        def write(self, data: Any) -> int:  # noqa: ARG002
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("builtins.open", lambda path, mode: Full(path, "w"))
    with pytest.raises(OutputError, match="no space left on the device"):
        job.save(file)
    monkeypatch.undo()
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.pt"]
