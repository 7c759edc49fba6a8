"""What a run is made of, built from its config: the stream; network, learner and method."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from cl_bench import config, runtime
from cl_bench.types import Stream


def make_stream(cfg: DictConfig, machine: runtime.Runtime) -> Stream:
    """The tasks on the device, as the method will meet them."""
    from cl_bench.data.stream import validation

    live = config.build(cfg.scenario.live)
    stream = config.build(cfg.dataset, scenario=live, device=machine.device)
    if cfg.evaluation.split == "val":
        stream = validation(stream, cfg.evaluation.holdout, cfg.dataset.seed)
    return config.build(cfg.stream, stream=stream)


def make_method(cfg: DictConfig, machine: runtime.Runtime, stream: Stream) -> Any:
    """Network, learner and method in their first state."""
    from cl_bench.learner import Learner

    shape = stream.transform.view(stream.tasks[0].x[:1]).shape[1:]
    stream.transform.draw(stream.tasks[0].x[:1], machine.generator())  # fits, or says why not
    net = config.build(cfg.model, shape=tuple(shape), num_classes=stream.num_classes)
    optimizer = config.without(cfg.optimizer, "weight_decay")
    learner = Learner(
        net=machine.place(net),
        criterion=config.build(cfg.criterion),
        optimizer=config.build(optimizer),
        weight_decay=cfg.optimizer.weight_decay,
        transform=stream.transform,
        machine=machine,
    )
    return config.build(cfg.method, learner=learner)
