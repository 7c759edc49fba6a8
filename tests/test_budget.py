"""What a method keeps besides the network, counted by hand, and the limit on it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import composed, method_for

import cl_bench
from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.engine import checkpoint
from cl_bench.engine.budget import require_state_within
from cl_bench.testing.small_run import SmallRun

P = 16 * 16 + 16 + 16 * 6 + 6  # parameters of the toy perceptron: 16 pixels, 16 units, 6 classes
ROW = 16 + 8 + 8  # an image of 16 bytes, its label and its task
COUNTED = {
    "finetune": 0,
    "er": 50 * ROW,
    "derpp": 50 * (ROW + 6 * 4),  # and its logits
    "ewc": 2 * 4 * P,  # an anchor and a diagonal
    # an anchor, two factors and a scale for each layer, and a diagonal of what is in no layer
    "osla": 4 * (P + (17**2 + 16**2 + 1) + (17**2 + 6**2 + 1) + P),
    "si": 4 * 4 * P,  # these two, omega, and the parameters at the task's start
    # and the Fisher, two scores, two sums over an interval
    "rwalk": 4 * 8 * P,
    "lwf": 4 * P + 3 * 6 + 3 * 6,  # the teacher, and two masks of classes
    "independent": 4 * (P + 3 * P),  # the first parameters, and a network for each task
    "emcl": 2 * 4 * P,  # importance and rates
}


def options_of(name: str) -> dict[str, Any]:
    overrides = ["buffer.capacity=50"] if name in ("er", "derpp") else []
    return {"method": lambda learner: method_for(name, learner, *overrides), "scenario": "task"}


@pytest.mark.parametrize("name", COUNTED)
def test_every_tensor_that_is_kept_is_counted(name: str) -> None:
    run = SmallRun(**options_of(name))()
    assert checkpoint.state_bytes(run.made) == COUNTED[name]
    rows = [row for row in run.rows if row["event"] == "task"]
    assert rows[-1]["state_bytes"] == COUNTED[name]


def test_the_limit_is_exact() -> None:
    state = SmallRun(**options_of("ewc"))().made.state_dict()
    exact = COUNTED["ewc"] / 2**20
    require_state_within(exact, state, "after task 2")
    require_state_within(None, state, "after task 2")
    with pytest.raises(UserError) as caught:
        require_state_within(exact / 2, state, "after task 2")
    kept, over = f"{exact:.4g}", f"{exact / 2:.4g}"
    assert f"after task 2 the method keeps {kept} MiB" in str(caught.value)
    assert f"(penalty {kept}), {over} over" in str(caught.value)


def test_a_run_over_its_budget_fails_after_the_task(tmp_path: Path) -> None:
    """Its status says why; the same run without the budget is the same run, and continues."""
    options = "method=independent", "dataset=seqmnist5k", "dataset.train_per_task=20"
    more = "tracking=none", f"output_dir={tmp_path}", "scenario=task"
    run = partial(cl_bench.run, *options, *more)
    network = 4 * (784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10) / 2**20
    with pytest.raises(UserError, match=r"budget_mib=1: after task 1 the method keeps"):
        run("budget_mib=1")
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["state"] == "failed"
    done = run()
    assert done.folder == status.parent
    assert done.record.state_bytes / 2**20 == pytest.approx(6 * network)
    assert run(f"budget_mib={6 * network + 0.001}").folder == done.folder
    with pytest.raises(UserError, match=r"budget_mib=2: .* at the end the method keeps"):
        run("budget_mib=2")


def test_a_buffer_over_the_budget_is_refused_at_once() -> None:
    for line, overrides in (
        ("buffer.capacity=200: its images take 0.1495 MiB, budget_mib=0.1", ["method=er"]),
        ("buffer.per_task=50: its images take 0.7477 MiB", ["method=gem", "buffer.per_task=50"]),
    ):
        with pytest.raises(UserError) as caught:
            check_config(composed("dataset=pmnist", *overrides, "budget_mib=0.1"))
        assert line in str(caught.value)
