"""The network of a finished run, loaded by plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import batch, learner, machine, method_for, mlp, resnet
from safetensors.torch import load_file
from test_kills import data, executed, planned
from torch import nn

from cl_bench.config.build import make_stream
from cl_bench.engine import trained
from cl_bench.models.linearized import Linearized
from cl_bench.models.mlp import MLP

__all__ = ["data"]  # fixtures


def nets() -> dict[str, Any]:
    return {
        "mlp": mlp,
        "batch norm": resnet,
        "linearized": lambda: Linearized(mlp(), "bilinear"),
    }


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", nets())
def test_three_lines_of_pytorch_restore_it(kind: str, last: bool, tmp_path: Path) -> None:
    made = learner(nets()[kind](), machine(channels_last=last))
    rows = batch(6, shape=(3, 8, 8) if kind == "batch norm" else (1, 4, 4))
    method = method_for("finetune", made)
    method.observe(rows)
    trained.write(method, tmp_path)
    net: nn.Module = nets()[kind]()
    net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with made.evaluating(), torch.no_grad():
        expected = method.predict(rows)
    torch.testing.assert_close(net.eval()(rows.x / 255), expected)


def test_a_finished_run_leaves_the_network_that_was_tested(tmp_path: Path, data: Path) -> None:
    plan = planned("er", tmp_path, data)
    record = executed(plan)
    net = MLP((1, 28, 28), 10, [12], "relu", "xavier", "same")
    net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    stream = make_stream(plan.cfg, torch.device("cpu"))
    for test, accuracy in zip(stream.tests, record["accuracy"][-1], strict=True):
        hits = net(test.x / 255).argmax(1) == test.y
        assert hits.double().mean().item() == pytest.approx(accuracy, abs=2 / len(test))


def test_networks_of_tasks_are_apart(tmp_path: Path, data: Path) -> None:
    executed(planned("independent", tmp_path, data))
    one, two = (load_file(tmp_path / f"model.task{k}.safetensors") for k in (0, 1))
    assert one.keys() == two.keys() and not (tmp_path / "model.safetensors").exists()
    assert not one["features.1.weight"].equal(two["features.1.weight"])


def test_it_is_left_out_where_that_is_wanted(tmp_path: Path, data: Path) -> None:
    plan = planned("er", tmp_path, data)
    plan.cfg.save_network = False
    executed(plan)
    assert not list(tmp_path.glob("*.safetensors"))
