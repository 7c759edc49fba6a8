"""What every method must hold, as assertions on small runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from cl_bench.base.exceptions import StopRun
from cl_bench.config.build import build
from cl_bench.config.compose import composed
from cl_bench.core.flat import FlatParams
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Stream
from cl_bench.data.boundaries import online
from cl_bench.engine import checkpoint, experiment
from cl_bench.engine.evaluation import accuracies
from cl_bench.methods.base import Method
from cl_bench.results.record import json_value
from cl_bench.testing.small import learner, method_for, mlp, scheduled
from cl_bench.testing.small_run import SmallRun, batch_norm, foreign_data_as_noise, tangent

LEAST_ACCURACY = 0.3  # on a task after its 8 steps, of 1; chance is 1/2 or 1/6
MadeBy = Callable[[Learner], Method]


def check_method(
    method: str | MadeBy,
    *overrides: str,
    scenarios: Sequence[str] | None = None,
    grows: bool = False,
) -> None:
    """Train a method on a toy stream, and assert what every method must hold.

    In each scenario that it serves: it repeats itself exactly, also where test sets and finished
    tasks are replaced by noise while it trains; it learns; a run that is stopped continues exactly;
    evaluation changes nothing; and `networks` has the networks that `predict` uses. Then in one
    scenario: what it keeps does not grow with the tasks, and it continues exactly on a network with
    batch norm and Adam, on a linearised network, and with `task_free` also on a stream without
    boundaries. It takes about three seconds.

        check_method("anchor", "method.strength=0.5")      # conf/method/anchor.yaml
        check_method(functools.partial(Anchor, strength=0.5))

    Args:
        method: the name of an option of `method`, or a function that makes a method on a learner.
        overrides: where `method` is a name, values for its options, if it learns too slowly with
            those of its file: there are 8 steps of 8 images for each of 3 tasks.
        scenarios: "data", "task", "class"; all of `Method.scenarios` where it is None.
        grows: True where the method keeps something for each task, such as a network.

    Raises AssertionError, with a sentence, where something does not hold.
    """
    made, arranged = (method, _unchanged) if callable(method) else _by_name(method, overrides)
    example = made(learner(mlp()))
    served = scenarios or example.scenarios
    options: dict[str, Any] = {"method": made, "arranged": arranged}
    with TemporaryDirectory() as folder:
        for scenario in served:
            _check_in_scenario(Path(folder) / scenario, **options, scenario=scenario)
        check_memory(grows, **options, scenario=served[0])
        for network in (batch_norm, tangent):
            where = Path(folder) / network.__name__
            check_stops(where, [3, 7, 4], **options, scenario=served[0], learner=network)
        if example.task_free and served[-1] != "task":
            check_task_free(Path(folder) / "online", method=made, scenario=served[-1])


def check_task_free(where: Path, **options: Any) -> None:
    """On a stream that is one long task, a run repeats itself, and continues exactly."""
    options |= {"arranged": partial(online, first=None), "schedule": scheduled()}
    run = SmallRun(**options, folder=_made(where / "run"))()
    check_repeats(run, SmallRun(**options)())
    check_stops(where, [2, 2, 3], run, **options)  # within the first task, and at the second's ends


def _check_in_scenario(where: Path, **options: Any) -> None:
    run = SmallRun(**options, folder=_made(where / "run"))()
    with foreign_data_as_noise():
        noise = SmallRun(**options)()
    check_repeats(run, SmallRun(**options)())
    check_foreign_data(run, noise)
    check_learns(run)
    check_evaluation(run)
    check_networks(run)
    check_stops(where, [3, 5, 15], run, **options)


def _unchanged(stream: Stream) -> Stream:
    return stream


def _by_name(name: str, overrides: Sequence[str]) -> tuple[MadeBy, Callable[[Stream], Stream]]:
    """An option of `method` as a function of the learner, and what it does to a stream."""
    stream = composed(f"method={name}").stream
    return (
        lambda made: method_for(name, made, *overrides),
        lambda found: build(stream, stream=found),
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_repeats(one: SmallRun, two: SmallRun) -> None:
    """Two runs have the same parameters, accuracies and rows, all finite, on the run's device."""
    assert one.theta.isfinite().all(), "parameters are not finite"
    assert one.theta.equal(two.theta), "a second run ends with other parameters"
    _assert_equal_matrices(one, two)
    losses = [row["loss"] for row in one.rows if row["event"] == "step"]
    assert losses and all(loss == loss for loss in losses), "the loss is nan"
    assert json_value(one.rows) == json_value(two.rows), "a second run logs other rows"
    made = one.made.learner
    assert is_whole(made.flat, made.net), "parameters were replaced; change flat.theta in place"
    state = checkpoint.state_of(one.made)["method"]
    wrong = {str(t.device) for t in checkpoint.tensors(state)} - {str(made.flat.theta.device)}
    assert not wrong, f"state on {', '.join(wrong)}, the run is on {made.flat.theta.device}"


def check_foreign_data(run: SmallRun, noise: SmallRun, holds_data: bool = False) -> None:
    """A run in which test sets and finished tasks become noise keeps the same parameters and state.

    With `holds_data` the state may refer to past tasks.
    """
    assert noise.theta.equal(run.theta), "the method reads a test set, or a task after its end"
    states = [checkpoint.tensors(checkpoint.state_of(one.made)) for one in (run, noise)]
    same = all(a.equal(b) for a, b in zip(*states, strict=True))
    assert holds_data or same, "the state refers to the data of a task after its end; copy it"


def check_learns(run: SmallRun) -> None:
    """After its own training, a task is told apart, if tasks come one after the other."""
    found = run.summary["LA"]
    alone = len(run.stream.tasks) == 1  # as in joint training
    assert alone or found > LEAST_ACCURACY, (
        f"after 8 steps a task has {found:.0%} accuracy; give options with which it learns faster"
    )


def check_evaluation(run: SmallRun) -> None:
    """Evaluation changes no parameter, draws nothing, and does not depend on its batch size."""
    before = run.theta.clone(), run.made.learner.rng.get_state()
    found = [accuracies(run.made, run.stream.tests, size) for size in (5, 1000)]
    assert found[0] == found[1], "predict depends on the other images of a batch"
    assert run.theta.equal(before[0]), "predict changes parameters"
    assert run.made.learner.rng.get_state().equal(before[1]), "predict draws random numbers"


def check_networks(run: SmallRun) -> None:
    """model.safetensors and theta_sha256 are of what `predict` uses."""
    method, networks = run.made, dict(run.made.networks())
    with method.learner.evaluating(full_precision=False), torch.no_grad():
        for test in run.stream.tests:
            snapshot = networks[""] if "" in networks else networks.get(f"task{test.id}")
            if snapshot is not None:
                rows = Batch(test.x, test.y, test.t)
                found = method.learner.snapshot_logits(snapshot, rows)
                same = torch.allclose(method.predict(rows), found, rtol=1e-5, atol=1e-6)
                assert same, "networks() yields other networks than predict uses"


def check_memory(grows: bool, **options: Any) -> None:
    """The bytes of the method's state grow from the second task to the third only with `grows`."""
    kept: list[int] = []
    measure = experiment.measure

    def measured(session: Any, row: int) -> None:
        kept.append(checkpoint.state_bytes(session.method))
        measure(session, row)

    with patch.object(experiment, "measure", measured):
        SmallRun(**options)()
    before, after = kept[-2:]
    assert len(kept) < 4 or (after > before) == grows, (
        f"the state has {before} bytes after the second task and {after} after the third; a method "
        "that keeps something for each task grows, another does not"
    )


def check_stops(
    where: Path, stops: Sequence[int], straight: SmallRun | None = None, **options: Any
) -> SmallRun:
    """A run that is stopped after each number of steps, and continued, ends as one without stops.

    `straight`, if it is given, is the run without stops, of the same options and with a folder.
    Returns it.
    """
    straight = straight or SmallRun(folder=_made(where / "straight"), **options)()
    for stop_at in stops:
        try:
            SmallRun(folder=_made(where / "stopped"), stop_at=stop_at, **options)()
        except StopRun:
            continue
        raise AssertionError("the run did not stop")
    resumed = SmallRun(folder=where / "stopped", **options)()
    assert resumed.theta.equal(straight.theta), "a stopped run continues to other parameters"
    _assert_equal_matrices(resumed, straight)
    files = [run.folder / "metrics.jsonl" for run in (straight, resumed) if run.folder]
    assert len(files) == 2 and files[0].read_text() == files[1].read_text(), "other rows"
    states = [checkpoint.tensors(checkpoint.state_of(run.made)) for run in (straight, resumed)]
    same = all(one.equal(two) for one, two in zip(*states, strict=True))
    assert same, "a stopped run continues to another state"
    return straight


def _assert_equal_matrices(one: SmallRun, two: SmallRun) -> None:
    pair = one.progress.matrix.values, two.progress.matrix.values
    torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True)


def is_whole(flat: FlatParams, net: nn.Module) -> bool:
    """Whether every parameter and gradient is still a view of the flat vectors."""
    spans = [(flat.theta.data, "data"), (flat.grad, "grad")]
    return flat.theta.grad is flat.grad and all(
        first <= getattr(p, field).data_ptr() < first + storage.numel() * storage.element_size()
        for storage, field in spans
        for first in [storage.data_ptr()]
        for p in net.parameters()
    )
