"""Recipes: released ones are whole, wrong ones are refused in one helpful line."""

import re
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import pytest
import torch

from kunet import recipes, tasks
from kunet.train import build, learning_rate, schedule


@pytest.mark.parametrize("name", recipes.names())
def test_released_recipes_build(name):
    recipe = recipes.load(name)
    assert recipe.name == re.sub("_(further|third|fourth)$", "", name)  # trainings of the same weights
    with torch.device("meta"):
        model, _ = build(replace(recipe, start=""))  # of which there are no values on that device
    assert sum(p.numel() for p in model.parameters()) > 0
    assert len(list(schedule(recipe))) == recipe.steps


def test_released_recipes_are_these():
    assert recipes.names() == sorted(
        "dncnn ffdnet kbnet_l_blind kbnet_s_sigma50 kbnet_small kit_deblur kit_pretrain kit_sidd kmunet_denoise"
        " kmunet_drawn kunet kunet_base kunet_base_further kunet_base_third kunet_large kunet_small kunet_small_further"
        " kunet_tiny kunet_tiny_further kunet_tiny_third kunet_tiny_fourth nafnet_derain nafnet_rain100l nafnet_reds"
        " quick ukan_busi unet".split()
    )


@pytest.mark.parametrize("name", recipes.names())
def test_a_released_recipe_says_where_its_numbers_come_from(name):
    """In a comment above its fields, of a few lines."""
    text = files(recipes).joinpath(f"{name}.yaml").read_text()
    head = text.split("\nname:")[0].splitlines()
    assert 1 <= len(head) <= 6 and all(line.startswith("# ") for line in head)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", recipes.names())
def test_a_released_recipes_task_takes_what_its_model_returns(name):
    recipe = recipes.load(name)
    with torch.device("meta"):
        model, task = build(replace(recipe, start=""))
    task.fits(model)
    with pytest.raises(ValueError, match=r"logits|restores images"):
        other = {"segment": "denoise"}.get(recipe.task, "segment")
        tasks.make(other, {}).fits(model)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"step": 5}, "no field 'step' \\(did you mean 'steps'\\?\\)"),
        ({"steps": "many"}, "steps: .*integer.*'many'"),
        ({"steps": True}, "only compile and recompute are true or false"),
        ({"lr": float("nan")}, "lr: .*finite"),
        ({"steps": 0}, "steps: .*greater than or equal to 1.*got 0"),
        ({"lr": -1}, "lr: .*greater than 0"),
        ({"precision": "fp8"}, "precision: .*'fp32' or 'bf16'"),
        ({"phases": []}, "phases: "),
        ({"phases": [{"share": 0.5, "patch": 64, "batch": 8}]}, "add up to 0.5"),
        ({"phases": [{"share": 1, "patch": 64, "bath": 8}]}, "phases.0.bat"),
    ],
)
def test_wrong_fields(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        recipes.load("quick", changes)
    assert "\n" not in str(caught.value)


def test_wrong_recipes(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'quick'"):
        recipes.load("quik")
    path = tmp_path / "mine.yaml"
    path.write_text("- a list\n")
    with pytest.raises(ValueError, match="holds a list"):
        recipes.load(str(path))
    path.write_text("name: [unclosed\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        recipes.load(str(path))
    path.write_text("name: mine\n")
    with pytest.raises(ValueError, match="steps: field required"):
        recipes.load(str(path))


def test_a_number_that_yaml_reads_as_text():
    assert recipes.load("quick", {"lr": "1e-5"}).lr == 1e-5  # YAML 1.1 takes 1e-5 for a string


@pytest.mark.parametrize(
    "model,words", [({"model": "unett"}, "no model 'unett'"), ({"model_args": {"width": 3}}, "do not fit")]
)
def test_wrong_models(model, words):
    with pytest.raises(ValueError, match=words):
        build(recipes.load("quick", model))


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"model": "ukan", "model_args": {}}, "denoise: the model returns 1 logits a pixel"),
        ({"model": "unet", "model_args": {}, "task": "segment", "task_args": {}}, "segment: the model restores images"),
        (
            {"model": "unet", "model_args": {"classes": 2}, "task": "segment", "task_args": {"classes": 3}},
            "segment: the model returns 2 logits a pixel, and the task has 3 classes",
        ),
    ],
)
def test_a_model_that_does_not_fit_its_task(fields, words):
    """Refused before a step is made."""
    with pytest.raises(ValueError, match=f"recipe 'quick': {words}"):
        build(recipes.load("quick", fields))


def test_schedule_and_learning_rate():
    recipe = recipes.load(
        "quick",
        {
            "steps": 100,
            "warmup": 10,
            "decay": 0.5,
            "lr": 1.0,
            "phases": [{"share": 0.7, "patch": 16, "batch": 4}, {"share": 0.3, "patch": 32, "batch": 2}],
        },
    )
    steps = list(schedule(recipe))
    assert [s for s, _, _ in steps] == list(range(100))
    assert [p.patch for _, p, _ in steps] == [16] * 70 + [32] * 30
    assert [first for _, _, first in steps][:3] == [0, 4, 8] and steps[71][2] == 70 * 4 + 2
    rates = [learning_rate(recipe, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:51] == [1.0] * 42
    assert all(a > b for a, b in pairwise(rates[50:])) and 0 < rates[-1] < 0.02
    longer = recipes.load("quick", {"steps": 200, "warmup": 10, "decay": 0.5, "lr": 1.0})
    assert [learning_rate(longer, s) for s in range(50)] == rates[:50], "the plateau depends on the length"
