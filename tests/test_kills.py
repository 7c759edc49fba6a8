"""A run that is killed at any boundary, typed again, leaves the record of one that never was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import FEWER_STEPS, class_of, composed, one_of_each_class

from cl_bench.base import files
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.config.nodes import targets
from cl_bench.engine import checkpoint, execution, experiment
from cl_bench.engine.execution import Plan
from cl_bench.engine.host import RunHost
from cl_bench.results.folder import Folder
from cl_bench.results.source_code import code_of

TASKS = 2
SMALL = ("tracking=none", "dataset.tasks=2", "dataset.train_per_task=24", "runtime.threads=1")
SMALL += ("model.pretrained=null", "evaluation.batch_size=500")
SMALL += ("schedule.epochs=2", "schedule.batch_size=12")
NETWORK = {
    "ranpac": ("model.hidden=[12]", "model.random_features=30"),
    "l2p": (
        "model.prompts=[3,2,2]",
        "+model.arguments.depth=1",
        "+model.arguments.embed_dim=6",
        "+model.arguments.patch_size=7",
    ),
}
QUICK = {
    "halrp": ("method.growth=null",),  # the perceptron is small
    "mer": FEWER_STEPS,
    "packnet": ("method.prune_after=1",),
    **dict.fromkeys(("icarl", "wa", "lucir", "xder"), ("buffer.capacity=20",)),
    "bic": ("buffer.capacity=40", "method.held_out=0.5"),
}


class Killed(BaseException):
    """Power is gone."""


def planned(name: str, where: Path, data: Path) -> Plan:
    """The run of a method, as the command plans it."""
    able = class_of(name).scenarios
    scenario = next(each for each in ("data", "task", "class") if each in able)
    network = NETWORK.get(name, ("model.hidden=[12]",))
    chosen = f"method={name}", f"scenario={scenario}", *network, *QUICK.get(name, ())
    cfg = composed(*chosen, *SMALL, f"data_dir={data}")
    plain = check_config(cfg)
    labels = ["pmnist5k", scenario, name]
    code = code_of(targets(plain))
    return Plan(cfg, plain, config_hash(cfg), labels, Folder(where), code)


def executed(plan: Plan) -> dict[str, Any]:
    """The record of a run, without what differs between two runs of one config."""
    plan.folder.require_writable()
    execution.train_and_record(plan)
    return proved(plan.folder)


def proved(folder: Folder) -> dict[str, Any]:
    found = json.loads(folder.record.read_text())
    for place in ("measured", "config"):
        found.pop(place)
    return found


def before_the_first_step(patch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    patch.setattr(experiment, "learn", killed)


def within_task(number: int) -> Callable[[pytest.MonkeyPatch], None]:
    """At the third step of a task, of which two are saved."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        def advance(host: RunHost, steps: int) -> None:
            if host.progress.step == 3 and host.progress.done == number:
                raise Killed

        patch.setattr(RunHost, "advance", advance)
        patch.setattr(RunHost, "checkpoint_due", lambda host: True)

    return patched


def after_checkpoint(done: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Right after the checkpoint of so many tasks."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        save = checkpoint.save

        def then_killed(state: dict[str, Any], path: Path) -> None:
            save(state, path)
            if state["progress"]["done"] == done:
                raise Killed

        patch.setattr(checkpoint, "save", then_killed)

    return patched


def while_the_record_is_written(patch: pytest.MonkeyPatch) -> None:
    write = files.write_json

    def half(path: Path, content: Any) -> None:
        if path.name == "record.json":
            path.with_name(f".{path.name}.tmp").write_text(json.dumps(content)[:100])
            raise Killed
        write(path, content)

    patch.setattr(files, "write_json", half)


WITHIN_LAST = within_task(TASKS - 1)
BETWEEN, AT_THE_END = after_checkpoint(1), after_checkpoint(TASKS)
BOUNDARIES = (
    before_the_first_step,
    within_task(0),
    BETWEEN,
    WITHIN_LAST,
    AT_THE_END,
    while_the_record_is_written,
)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", one_of_each_class("emcl_replay"))
def test_killed_at_every_boundary(name: str, tmp_path: Path, data: Path) -> None:
    plan = planned(name, tmp_path / "straight", data)
    straight, broken = executed(plan), replace(plan, folder=Folder(tmp_path / "broken"))
    for boundary in BOUNDARIES:
        if name == "joint" and boundary in (WITHIN_LAST, AT_THE_END):
            continue  # one task: the first is the last
        with pytest.MonkeyPatch.context() as patch:
            boundary(patch)
            with pytest.raises(Killed):
                executed(broken)
        assert broken.folder.finished(broken.hash, broken.cfg.seed) is None
    assert executed(broken) == straight
    rows = [(tmp_path / part / "metrics.jsonl").read_bytes() for part in ("straight", "broken")]
    assert rows[0] == rows[1]
