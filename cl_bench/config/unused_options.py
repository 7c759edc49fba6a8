"""Finds the keys of a config that change no number, so that its hash leaves them out.

An example is `schedule.decay` with schedule.annealing=none. A class names such options of its own
(`unused_options`), a method those of the whole config (`Method.unused`). This module adds the keys
that depend on two groups, and those of functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.utils import get_object

from cl_bench.config.meta import has_batch_norm
from cl_bench.core.optim import PLAIN_SGD
from cl_bench.data import stream
from cl_bench.methods.base import Rehearsal
from cl_bench.methods.emcl import EMCL
from cl_bench.methods.lamaml import LaMAML
from cl_bench.methods.mer import MER

Node = dict[str, Any]
# methods that use `InnerLoop.batch_norm_mode`
NORMALISED = (EMCL, LaMAML, MER)
COPIED = {"scenario.split", "scenario.heads"}  # to `dataset.split` and `dataset.heads`
WAITING = {"runtime.per_gpu"}  # when a run starts, and no number of it
# where one is false, or `scenario.live.future`, the config has the hash from before this option
CUDA_OPTIONS = ("tf32", "benchmark", "graphs")
# where one is null, the config has the hash from before this key
LATER_MODEL_KEYS = ("head", "fixed", "lora", "random_features", "prompts")


def unused_keys(plain: Node, nodes: Iterable[tuple[str, Node]]) -> set[str]:
    """The keys of a resolved config that change no number; `nodes` are those with a `_target_`."""
    found = set(get_object(plain["method"]["_target_"]).unused(plain))
    for key, node in nodes:
        options = getattr(get_object(node["_target_"]), "unused_options", None)
        found |= {f"{key}.{name}" for name in options(node)} if options else set()
    if get_object(plain["method"]["_target_"]).uses_held_out:
        found.discard("schedule.holdout")
    found |= COPIED | WAITING | _of_data(plain) | _of_model(plain["model"])
    found |= {f"runtime.{name}" for name in CUDA_OPTIONS if not plain["runtime"].get(name)}
    found |= set() if plain["scenario"]["live"].get("future") else {"scenario.live.future"}
    return found | _of_batch_norm(plain) | _of_buffer(plain) | _of_optimizer(plain)


def _of_data(plain: Node) -> set[str]:
    """The order of classes where tasks are not cut by class; the seed where nothing is drawn.

    A balanced data set has the hash that it had before there was `imbalance`, and a folder that
    before there was `skip_broken`.
    """
    dataset = plain["dataset"]
    if get_object(dataset["_target_"]) is not stream.build:
        return set()
    even = dataset["imbalance"] == 1
    unused = {"dataset.imbalance"} if even else set[str]()
    if dataset["source"].get("skip_broken") is False:
        unused.add("dataset.source.skip_broken")
    if dataset["split"] == "rotation":
        return unused
    if dataset["split"] != "class":
        return unused | {"dataset.order"}
    whole = dataset["train_per_task"] is None and dataset["fraction"] == 1 and even
    drawn = not whole or dataset["order"] == "random" or plain["evaluation"]["split"] == "val"
    heads = set() if dataset["heads"] == "position" else {"dataset.heads"}
    return unused | heads | (set() if drawn else {"dataset.seed"})


def _of_model(model: Node) -> set[str]:
    """The initial weights where pre-trained ones replace them; `linearize` with a head alone.

    A key that is younger than the first records is left out where it is null.
    """
    replaced = model["pretrained"] is not None and model.get("head_init") in ("zero", "pretrained")
    found = {"model.init"} if replaced and "init" in model else set()
    found |= {f"model.{key}" for key in LATER_MODEL_KEYS if model.get(key) is None}
    return found | ({"model.linearize"} if model["head_mode"] == "head_only" else set())


def _of_batch_norm(plain: Node) -> set[str]:
    """The treatment of batch norm, in a network without batch norm."""
    model, method = plain["model"], plain["method"]
    built = has_batch_norm(model)
    if built and model["norm"] == "batch":
        return set()
    found = {"schedule.batch_norm"} if built else {"schedule.batch_norm", "model.norm"}
    if issubclass(get_object(method["_target_"]), NORMALISED):
        found.add("method.batch_norm")
    curvature = method.get("curvature", {})
    return found | ({"method.curvature.batch_norm"} if "batch_norm" in curvature else set())


def _of_optimizer(plain: Node) -> set[str]:
    """Whether the optimizer's state goes on, where it has none, or there is one task."""
    optimizer = plain["optimizer"]
    stateless = optimizer["_target_"] in PLAIN_SGD and not optimizer.get("momentum")
    one_task = get_object(plain["stream"]["_target_"]) is stream.joint
    return {"schedule.fresh_optimizer"} if stateless or one_task else set()


def _of_buffer(plain: Node) -> set[str]:
    """In which epoch samples are offered to the buffer, where there is one epoch."""
    rehearses = issubclass(get_object(plain["method"]["_target_"]), Rehearsal)
    epochs = plain["schedule"]["epochs"]
    once = rehearses and (max(epochs) if isinstance(epochs, list) else epochs) == 1
    return {"method.buffer.insert"} if once else set()
