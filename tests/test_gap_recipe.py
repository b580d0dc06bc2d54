"""Recipes: what makes no sense is refused, and JSON gives back what it was given."""

import json
from typing import Any

import pytest

from camlucida.errors import InputError
from camlucida.gap.augment import Augment
from camlucida.gap.recipe import Recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 7}, {"epochs": 0}, {"batch": 1}, {"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1.0},
        {"patience": -1}, {"trunk": -0.5}, {"warmup": 1.1}, {"smoothing": -0.1}, {"balance": 2.0}, {"average": 1.5},
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_an_unknown_optimizer_is_told_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'adam' is no optimizer\. Did you mean 'adamw'\?"):
        Recipe(optimizer="adam")


def test_json_gives_back_what_it_was_given() -> None:
    recipe = Recipe(64, 3, 16, "sgd", 0.1, 0.0, 0.2, 0.5, 0.0, 0.5, 0.9, 4, 7, Augment((0.5, 0.9), 1.2, 3.0, 0.0))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert Recipe.from_dict({}) == Recipe()


def test_whole_numbers_stand_for_real_ones_and_the_other_way_round() -> None:
    made = Recipe.from_dict({"lr": 1, "epochs": 3.0, "augment": {"turn": 5, "area": [1, 1]}})
    assert (made.lr, made.epochs, made.augment.turn, made.augment.area) == (1.0, 3, 5.0, (1.0, 1.0))
    assert type(made.lr) is float and type(made.epochs) is int


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"epoch": 3}, r"no 'epoch'\. Did you mean 'epochs'"),
        ({"augment": {"flop": 0.5}}, r"no 'flop'\. Did you mean 'flip'"),
        ({"epochs": "many"}, "epochs in a recipe is something like 60; it is 'many'"),
        ({"epochs": 2.5}, "epochs in a recipe"),
        ({"epochs": True}, "epochs in a recipe"),
        ({"lr": None}, "lr in a recipe"),
        ({"optimizer": 3}, "optimizer in a recipe"),
        ({"augment": {"area": [1.0]}}, "area in a recipe"),
        ({"augment": {"area": 0.5}}, "area in a recipe"),
        ({"augment": 3}, "augment in a recipe"),
        ({"epochs": 0}, "epochs must be 1 or more"),
    ],
)
def test_a_recipe_from_elsewhere_is_checked(told: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Recipe.from_dict(told)


@pytest.mark.parametrize(
    "told",
    [
        {"epochs": 10**400}, {"lr": 10**400}, {"weight_decay": float("inf")}, {"lr": 1e38}, {"trunk": float("inf")},
        {"batch": 1e300}, {"size": 1e6}, {"seed": 10**19}, {"seed": -1}, {"augment": {"ratio": float("inf")}},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_no_run_can_bear_are_refused_by_name(told: dict[str, Any]) -> None:
    name = next(iter(told.get("augment", told)))
    with pytest.raises(InputError, match=name) as refused:
        Recipe.from_dict(told)
    assert len(str(refused.value)) < 400
    assert Recipe(seed=10**12, lr=1e4, batch=1_000_000, size=4096).augment == Augment()
