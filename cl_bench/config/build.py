"""Builds the objects of a run from its config: the stream of tasks, the network, the method."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config.errors import exception_chain
from cl_bench.config.folders import VARIABLE, make_importable
from cl_bench.config.nodes import resolved, set_everywhere
from cl_bench.core import runtime
from cl_bench.core.types import Stream


def build(node: DictConfig, **extra: Any) -> Any:
    """The object that a node describes: its `_target_`, called with the node's keys and `extra`."""
    made = instantiate(node, _convert_="all")
    return made(**extra) if extra else made


def parameter_names(node: DictConfig) -> list[str]:
    """The names of the parameters of the node's `_target_`."""
    return list(inspect.signature(get_object(node._target_)).parameters)


def without_keys(node: DictConfig, *keys: str) -> DictConfig:
    """A resolved copy of the node that lacks these keys."""
    return OmegaConf.create({k: v for k, v in resolved(node).items() if k not in keys})


def make_stream(cfg: DictConfig, device: torch.device) -> Stream:
    """The stream of tasks in the order of `scenario.order`, with its images on the device.

    With evaluation.split=val, held-out training images take the place of the test sets; with
    schedule.patience or a method that asks for it, some more are held out of each task.
    """
    from cl_bench.data.check import holds_out
    from cl_bench.data.orders import reorder_tasks
    from cl_bench.data.stream import validation, with_held_out

    live = build(cfg.scenario.live)
    stream = build(cfg.dataset, scenario=live, device=device)
    if cfg.evaluation.split == "val":
        stream = validation(stream, cfg.evaluation.holdout, cfg.dataset.seed)
    order = cfg.scenario.order
    stream = reorder_tasks(stream, order if isinstance(order, str) else list(order))
    stream = build(cfg.stream, stream=stream)
    if not holds_out(resolved(cfg)):
        return stream
    return with_held_out(stream, cfg.schedule.holdout, cfg.dataset.seed)


def recorded_stream(config: dict[str, Any], **folders: str | None) -> Stream:
    """The stream of a recorded config, on the CPU, with other `folders` (data_dir, cache_dir)."""
    cfg = OmegaConf.create(config)
    for key, value in folders.items():
        set_everywhere(cfg, key, value)
    with _recorded_code():
        return make_stream(cfg, torch.device("cpu"))


def recorded_transform(config: dict[str, Any]) -> Any:
    """The transform of a recorded config, on the CPU."""
    with _recorded_code():
        return build(OmegaConf.create(config).dataset.transform, device=torch.device("cpu"))


def recorded_network(config: dict[str, Any], shape: Sequence[int], num_classes: int) -> nn.Module:
    """The network of a recorded config as initialised, on the CPU; no global draw is made."""
    model = OmegaConf.create({**config["model"], "pretrained": None})
    with _recorded_code(), torch.random.fork_rng(devices=[]):
        try:
            return make_network(model, shape, num_classes)
        except TypeError as error:
            raise UserError(
                f"model._target_={model._target_}: does not take the keys that the run had "
                f"({one_line(error, 200)}); its code has changed since"
            ) from error


@contextmanager
def _recorded_code() -> Iterator[None]:
    """Raise UserError where code of the user's that a run had cannot be imported now."""
    make_importable()
    try:
        yield
    except (InstantiationException, ImportError) as error:
        missing = [link for link in exception_chain(error) if isinstance(link, ImportError)]
        if not missing:
            raise
        raise UserError(
            f"code of the run cannot be imported ({one_line(missing[-1], 200)}); set PYTHONPATH to "
            f"the folder that has this code, or {VARIABLE} to the folder of its options"
        ) from None


def make_network(model: DictConfig, shape: Sequence[int], num_classes: int) -> nn.Module:
    """The network for images of `shape` (C, H, W): built, pre-trained and prepared as `model` says.

    The class gets the model's own keys, `prepare_network` those that every model has
    (`PREPARE_KEYS`).
    """
    from cl_bench.config.meta import bare_network
    from cl_bench.models.foreign import adopt
    from cl_bench.models.head import name_head
    from cl_bench.models.prepare import PREPARE_KEYS, prepare_network
    from cl_bench.models.pretrained import resolve_name

    plain, x = resolved(model), torch.zeros(1, *shape)
    net = bare_network(plain, shape, num_classes)
    name_head(net, plain["head"], num_classes)
    keys: dict[str, Any] = {key: plain.get(key) for key in PREPARE_KEYS if key != "head"}
    keys["pretrained"] = resolve_name(plain)
    with_head = plain.get("head_init") == "pretrained"
    return prepare_network(adopt(net, x), x, with_head=with_head, **keys)


def read_backbone_info(cfg: DictConfig) -> dict[str, Any] | None:
    """The provenance of the pre-trained backbone; None where the network has none."""
    from cl_bench.models import library
    from cl_bench.models.pretrained import backbone_info, resolve_name

    model = resolved(cfg.model)
    name = resolve_name(model)
    return library.backbone_info(model) if name is None else backbone_info(name)


def make_method(cfg: DictConfig, machine: runtime.Runtime, stream: Stream) -> Any:
    """The method with its learner and network, as they are before the first step."""
    from cl_bench.core.learner import Learner
    from cl_bench.core.optim import fused_on

    shape = stream.transform.view(stream.tasks[0].x[:1]).shape[1:]
    stream.transform.draw(stream.tasks[0].x[:1], machine.generator())  # refuses a crop too large
    net = make_network(cfg.model, tuple(shape), stream.num_classes)
    optimizer = without_keys(cfg.optimizer, "weight_decay")
    learner = Learner(
        net=machine.place(net),
        criterion=build(cfg.criterion),
        optimizer=fused_on(machine.device, build(optimizer)),
        weight_decay=cfg.optimizer.weight_decay,
        transform=stream.transform,
        machine=machine,
    )
    method = build(cfg.method, learner=learner)
    if getattr(method, "learner", None) is not learner:
        name = type(method).__name__
        raise TypeError(f"{name}.__init__ must call super().__init__(learner) of Method")
    method.state_dict()  # refuses what cannot go into a checkpoint, before training
    method.check_network(stream.tasks[0])
    return method


def refuse_leak(stream: Stream, backbone: dict[str, Any] | None) -> None:
    """Raise UserError where the backbone was pre-trained on the stream's own data."""
    if backbone is not None and backbone["data"].get("sha256") == stream.description["sha256"]:
        raise UserError(
            f"model.pretrained={backbone['name']}: it was trained on this very data set, "
            "all at once; use another backbone, or another data set"
        )
