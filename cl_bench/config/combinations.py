"""Refuses options that are valid each on its own, but not together; nothing is loaded."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_object

from cl_bench.base.exceptions import UserError
from cl_bench.config import boundaries, optimizer_trial, size
from cl_bench.config.meta import has_batch_norm
from cl_bench.core.optim import PLAIN_SGD
from cl_bench.data import check as data
from cl_bench.data import scenario
from cl_bench.data.orders import task_order
from cl_bench.data.plan import number_of
from cl_bench.models import library, prepare

COMPETING = {"data": scenario.data_il, "task": scenario.task_il, "class": scenario.class_il}


def check(plain: dict[str, Any]) -> None:
    """Raise UserError where two groups of a resolved config do not go together."""
    _check_optimizer(plain)
    _check_schedule(plain)
    _check_data(plain)
    boundaries.check(plain)
    _check_early_stopping(plain)
    library.check(plain["model"])
    prepare.fixing_key(plain["model"])
    size.check(plain)  # builds the network without values, and refuses what it does not take
    _check_model(plain)
    if "curvature" in plain["method"]:
        _check_curvature(plain, plain["method"]["curvature"])
    _check_buffer(plain)
    get_object(plain["method"]["_target_"]).check(plain)
    optimizer_trial.check(plain["optimizer"])


def _check_buffer(plain: dict[str, Any]) -> None:
    options = plain["method"]
    method = get_object(options["_target_"])
    if "buffer" not in options or "method.buffer" in method.unused(plain):
        return
    name = options["buffer"]["_target_"]
    buffer = get_object(name)
    wrong = {
        "it keeps no logits, which the method replays; use buffer=reservoir or balanced": (
            method.replays_logits and not buffer.keeps_logits
        ),
        "the method stores samples with what is known at the end of their task; use buffer=equal "
        "or herding": method.needs_chosen_memory and not buffer.chooses_at_end,
        "it chooses samples by scores, which this method does not give; use method=gss, or "
        "buffer=reservoir": buffer.needs_scores and not method.gives_scores,
        "it makes no use of the method's scores; use buffer=scored, or method=er": (
            method.gives_scores and not buffer.needs_scores
        ),
    }
    for reason, holds in wrong.items():
        if holds:
            raise UserError(f"method.buffer._target_={name}: {reason}")


def _check_optimizer(plain: dict[str, Any]) -> None:
    optimizer = plain["optimizer"]
    method = get_object(plain["method"]["_target_"])
    if method.forbids_weight_decay and optimizer["weight_decay"]:
        raise UserError(
            f"optimizer.weight_decay={optimizer['weight_decay']}: the method has penalties of its "
            "own, or weights that must not change; use 0"
        )
    if method.requires_plain_sgd:
        if optimizer["_target_"] not in PLAIN_SGD:
            asked = ["_target_"]
        else:
            asked = [key for key in ("momentum", "weight_decay") if optimizer.get(key)]
        for key in asked:
            raise UserError(
                f"optimizer.{key}={optimizer[key]}: the method steps by itself, as plain SGD; "
                "use optimizer=sgd with momentum and weight_decay 0"
            )


def keeps_optimizer(plain: dict[str, Any]) -> bool:
    """Whether the optimizer's state goes on from task to task."""
    return not plain["schedule"].get("fresh_optimizer", True)


def _check_schedule(plain: dict[str, Any]) -> None:
    method = get_object(plain["method"]["_target_"])
    clip = plain["schedule"]["clip"]
    if clip is not None and (method.requires_plain_sgd or not method.allows_clipping):
        raise UserError(
            f"schedule.clip={clip}: the method makes steps of its own, which are not clipped; use "
            "schedule.clip=null"
        )
    if not keeps_optimizer(plain):
        return
    if not method.allows_kept_optimizer:
        raise UserError(
            f"schedule.fresh_optimizer=false: {method.__name__} trains new weights on each task, "
            "or keeps weights of earlier tasks as they are, which an optimizer that goes on "
            "would move; use schedule.fresh_optimizer=true"
        )
    mode, model = plain["schedule"]["batch_norm"], plain["model"]
    if mode != "train" and model["norm"] == "batch" and has_batch_norm(model):
        raise UserError(
            f"schedule.batch_norm={mode}: with schedule.fresh_optimizer=false the optimizer would "
            "go on moving what is fixed after the first task; use schedule.batch_norm=train, or "
            "schedule.fresh_optimizer=true"
        )


def _check_heads(scenario: str, split: str, heads: str) -> None:
    """Refuse outputs that tasks share, or have for themselves, where the scenario is another."""
    if heads == "position" and (split, scenario) != ("class", "data"):
        raise UserError(
            "dataset.heads=position: numbers the classes within each task, with "
            f"dataset.split=class in scenario=data; this is {split} in scenario={scenario}"
        )
    if split != "class" and (scenario == "data") != (heads == "shared"):
        wanted = "shared" if scenario == "data" else "apart"
        raise UserError(
            f"dataset.heads={heads}: with dataset.split={split}, in scenario={scenario}, tasks "
            f"have {'the same' if wanted == 'shared' else 'their own'} classes; use "
            f"dataset.heads={wanted}"
        )


def require_scenario(plain: dict[str, Any]) -> None:
    """Raise UserError where the method cannot be used in the scenario."""
    name, method = plain["scenario"]["name"], get_object(plain["method"]["_target_"])
    if name not in method.scenarios:
        usable = " or ".join(f"scenario={scenario}" for scenario in method.scenarios)
        raise UserError(f"scenario={name}: {method.__name__} can be used with {usable}")


def _check_data(plain: dict[str, Any]) -> None:
    images = data.check(plain)
    if images is not None:
        learned = sum(images[: plain["stream"]["first"]]) * _most_epochs(plain)
        boundaries.require_tests(plain["evaluation"]["every"], learned)
    name, split = plain["scenario"]["name"], plain["dataset"]["split"]
    live = get_object(plain["scenario"]["live"]["_target_"])
    if live in COMPETING.values() and COMPETING.get(name) is not live:
        raise UserError(
            f"scenario.live._target_={plain['scenario']['live']['_target_']}: belongs "
            f"to another scenario than scenario.name={name}; use scenario=<option>"
        )
    require_scenario(plain)
    _check_heads(name, split, plain["dataset"]["heads"])
    tasks, first = number_of(plain["dataset"]["tasks"]), plain["stream"]["first"]
    task_order(plain["scenario"]["order"], tasks)
    if (first or 0) > tasks:
        raise UserError(f"stream.first={first}: the stream has {tasks} tasks")
    order = plain["dataset"]["order"]
    if split == "rotation" and order not in ("natural", "random", "uniform"):
        raise UserError(
            f"dataset.order={order}: rotations have angles; use natural, random, uniform"
        )
    if split != "rotation" and order == "uniform":
        raise UserError(
            "dataset.order=uniform: only rotations have angles; use natural, random or superclass"
        )


def _most_epochs(plain: dict[str, Any]) -> int:
    """The number of epochs of the task that has the most."""
    epochs = plain["schedule"]["epochs"]
    return max(epochs) if isinstance(epochs, list) else epochs


def _check_early_stopping(plain: dict[str, Any]) -> None:
    """Refuse a patience that can never end a task before its last epoch."""
    epochs, patience = plain["schedule"]["epochs"], plain["schedule"]["patience"]
    most = _most_epochs(plain)
    if patience is None or patience < most:
        return
    advice = f"use at most {most - 1}, more epochs," if most > 1 else "use more epochs"
    raise UserError(
        f"schedule.patience={patience}: no task would end early, as schedule.epochs={epochs}; "
        f"{advice} or schedule.patience=null"
    )


def _check_model(plain: dict[str, Any]) -> None:
    model, method = plain["model"], get_object(plain["method"]["_target_"])
    if plain["schedule"]["warm_up"] == "head" and model["head_mode"] == "linearized":
        raise UserError(
            "schedule.warm_up=head: with model.head_mode=linearized the head starts where the "
            "tangent is taken; use schedule.warm_up=none, or model.head_mode=bilinear"
        )
    if plain["runtime"]["compile"] and any(model.get("dropout", [])):
        raise UserError(
            f"runtime.compile=true: model.dropout={model['dropout']} draws from a generator of the "
            "run's own, which a graph cannot hold; use runtime.compile=false, or model.dropout=[]"
        )
    normalised = has_batch_norm(model)
    folds = plain["schedule"]["batch_norm"] == "folded" and normalised
    if folds and model["norm"] == "batch" and not method.allows_folding:
        raise UserError(
            f"schedule.batch_norm=folded: {method.__name__} keeps values for each parameter during "
            "a task, which folding changes; use frozen or train"
        )
    prepare.check(model, normalised, plain["dataset"]["transform"])


def _check_curvature(plain: dict[str, Any], curvature: dict[str, Any]) -> None:
    estimator = get_object(curvature["_target_"])
    squared = get_object(plain["criterion"]["_target_"]).squared
    if squared and estimator.uses_true_labels(curvature):
        option = "diag_fisher, labels=empirical" if "labels" in curvature else "diag_batched"
        raise UserError(
            f"curvature={option}: with a squared loss it is made of residuals, which vanish as the "
            "fit improves; use diag_fisher with labels=sampled or exact"
        )
    penalized = get_object(plain["method"]["_target_"]).curvature_is_penalty
    matrix, raw = estimator.penalty, estimator.may_be_negative(curvature)
    if penalized and not matrix:
        raise UserError(
            "curvature=layer_hessian: it tells the layers' sizes (method=halrp) and makes no "
            "penalty; use diag_hessian, full_hessian or kfac"
        )
    if penalized and raw:
        raise UserError(
            "curvature.negative=raw: a penalty by negative values is unbounded below; "
            "use clamped or absolute"
        )
    frozen = plain["schedule"].get("batch_norm") == "frozen"  # where folded, the biases move
    if curvature.get("batch_norm") == "frozen" and not frozen:
        folded = plain["schedule"].get("batch_norm") == "folded"
        raise UserError(
            f"curvature.batch_norm=frozen: batch norm's {'biases' if folded else 'weights'} would "
            "move unprotected; use diagonal, or schedule.batch_norm=frozen"
        )
