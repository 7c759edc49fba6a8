"""A batch of one sees batch norm's running statistics, whoever asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    DEVICES,
    batch,
    compiles,
    composed,
    identity,
    learner,
    machine,
    method_for,
    resnet,
)
from test_kills import SMALL, data, proved
from torch import Tensor, nn

from cl_bench.config.check import check_config
from cl_bench.core.types import Batch
from cl_bench.engine import execution
from cl_bench.engine.execution import Plan
from cl_bench.models.convnet import ConvNet
from cl_bench.models.layers import accept_single_samples
from cl_bench.results.folder import Folder
from cl_bench.results.source_code import code_of

__all__ = ["data"]  # fixtures


def statistics(net: nn.Module) -> list[Tensor]:
    """A copy of what batch norm has seen."""
    return [value.clone() for value in net.buffers()]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_one_sample_is_normalised_by_running_statistics(device: str, compiled: bool) -> None:
    """Its gradient is that of evaluation mode, and the statistics stay; of two it is training's."""
    rt = machine(device)
    if compiled:
        compiles(rt)
    torch.manual_seed(0)
    net = ConvNet((1, 8, 8), 6, [3], [3], 1, [8], [], "relu", "torch", "same")
    made = learner(net, rt, transform=identity(rt.device))
    rows = Batch(*(part.to(device) for part in batch(12, shape=(1, 8, 8))[:3]))
    made.train(False)
    made.gradient(rows)  # moves the running statistics
    before = statistics(made.net)
    made.gradient(rows.rows(slice(0, 1)))
    alone = made.flat.grad.clone()
    assert all(a.equal(b) for a, b in zip(before, statistics(made.net), strict=True))
    with made.evaluating():
        made.gradient(rows.rows(slice(0, 1)))
    torch.testing.assert_close(alone, made.flat.grad)
    made.gradient(rows.rows(slice(0, 2)))
    assert not any(a.equal(b) for a, b in zip(before, statistics(made.net), strict=True))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_more_samples_are_as_pytorch_has_them(kind: Any) -> None:
    torch.manual_seed(0)
    shape = (5, 3, 2, 2) if kind is nn.BatchNorm2d else (5, 3)
    ours, theirs, x = kind(3), kind(3), torch.randn(shape)
    accept_single_samples(ours)
    assert ours(x).equal(theirs(x))
    assert all(a.equal(b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    one = torch.randn(1, *shape[1:])
    assert (
        ours(one).equal(ours.eval()(one)) and ours.state_dict().keys() == theirs.state_dict().keys()
    )


def test_a_network_without_statistics_is_left_alone() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    accept_single_samples(norm)
    assert norm(torch.randn(1, 3, 2, 2)).shape == (1, 3, 2, 2)


RESNET = ("model=reduced_resnet18", "model.width=4", "scenario=task", "dataset.split=class")
RESNET += ("dataset.heads=apart", "dataset.tasks=2", "dataset.train_per_task=25")
CASES: dict[str, tuple[str, ...]] = {
    "gem": ("method=gem", "buffer.per_task=1"),
    "agem": ("method=agem", "buffer.per_task=1"),
    "gem with a reservoir": ("method=gem", "buffer=reservoir", "buffer.capacity=2"),
    "derpp": ("method=derpp", "buffer.capacity=1"),
    "a last batch of one": ("schedule.batch_size=8",),
    "a last batch of one, after a curvature": ("method=ewc", "schedule.batch_size=8"),
    "single samples": ("schedule.batch_size=1", "dataset.train_per_task=3"),
    "after a linear layer": ("model=lenet", "model.hidden=[8]", "schedule.batch_size=8"),
    "er": ("method=er", "buffer.capacity=1", "method.combine=sum", "method.replay=1"),
    "the head's warm-up": ("schedule.warm_up=head", "dataset.train_per_task=257"),
}


@pytest.mark.parametrize("case", CASES)
def test_runs_that_come_down_to_one_sample(case: str, tmp_path: Path, data: Path) -> None:
    """Over maps of one pixel, too: 28 pixels are resized to 8."""
    quiet = [word for word in SMALL if word.startswith(("tracking", "runtime", "evaluation"))]
    size = ("dataset.transform.resize=8", "evaluation.when=final")
    words = (*quiet, *RESNET, *size, *CASES[case], f"data_dir={data}")
    if "model=lenet" in words:
        words = tuple(word for word in words if not word.startswith("model.width"))
    cfg = composed(*words)
    plain = check_config(cfg)
    plan = Plan(cfg, plain, "x", ["pmnist5k", "task", case], Folder(tmp_path / "a"), code_of([]))
    plan.folder.require_writable()
    execution.train_and_record(plan)
    again = replace(plan, folder=Folder(tmp_path / "b"))
    again.folder.require_writable()
    execution.train_and_record(again)
    assert proved(plan.folder) == proved(again.folder)


def test_meta_learners_see_single_samples() -> None:
    """MER and La-MAML by each sample's batch: what they did not survive over maps of one pixel."""
    for name in ("mer", "lamaml"):
        torch.manual_seed(0)
        made = learner(resnet(shape=(1, 8, 8)), transform=identity())
        method = method_for(name, made, "method.batch_norm=batch", "buffer.capacity=5")
        made.train(False)
        for _ in range(2):
            assert method.observe(batch(3, shape=(1, 8, 8))).isfinite()
