"""What every method owes, whatever the scenario: conf/method/*.yaml times three."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    DEVICES,
    SCENARIOS,
    blobs,
    class_of,
    compiler,
    group_of,
    identity,
    learner,
    machine,
    method_for,
    mlp,
    names,
    one_of_each_class,
    resnet,
    scheduled,
)
from torch import Tensor
from torchvision.models import VisionTransformer

from cl_bench.base.exceptions import StopRun, UserError
from cl_bench.config.build import build
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.data.augment import Transform
from cl_bench.engine import checkpoint, experiment
from cl_bench.engine.evaluation import (
    Evaluation,
    accuracies,
    accuracies_among,
    classes_if_task_known,
)
from cl_bench.engine.resume import UnusableError
from cl_bench.models.foreign import adopt
from cl_bench.probes.knn import KNN
from cl_bench.probes.max_eigenvalue import MaxEigenvalue
from cl_bench.testing import contract
from cl_bench.testing.small_run import (
    STEPS,
    Killed,
    SmallRun,
    batch_norm,
    begin,
    foreign_data_as_noise,
    tangent,
)

METHODS = names("method")
KINDS = one_of_each_class("emcl_replay")  # EMCL with a memory, too
TRAIN_FEATURES = {"er_aml", "lucir"}  # they refuse a linearised network
# refuse batch norm, tangents and transformers; they have tests of their own
PLAIN_ALONE = ("hat",)
ANY_NETWORK = [name for name in KINDS if name not in PLAIN_ALONE]
# keep a memory, a network, gates or data for each task
GROWS = ("agem", "gem", "distill", "halrp", "apd", "independent", "hat")
HOLDS_DATA = ("distill",)  # past tasks themselves, by reference
LOOKS = ("method.passes=2",)
QUICK = {  # fewer passes over a batch; what learns more in so few steps
    **dict.fromkeys(("emcl", "emcl_replay"), ("method.scale=10.0",)),
    "halrp": ("method.growth=3.0", "method.share=0.99"),  # the perceptron is small
    **dict.fromkeys(("lamaml", "sync", "cmaml"), LOOKS),
    **dict.fromkeys(("icarl", "wa"), ("buffer.capacity=12",)),
    "mir": ("method.replay=4", "method.candidates=2"),
    "packnet": ("method.prune_after=1", "method.share=0.1"),
    "er_aml": ("method.replay=30", "method.temperature=0.05", "buffer.capacity=30"),
    "bic": ("buffer.capacity=40", "method.held_out=0.3"),
    "lucir": ("buffer.capacity=12",),
    "xder": ("buffer.capacity=12", "method.constraint=0"),
}


def serves(name: str, scenario: str) -> bool:
    return scenario in class_of(name).scenarios


PAIRS = [(name, s) for name in METHODS for s in SCENARIOS if serves(name, s)]


def small_run(
    name: str, scenario: str, *, overrides: tuple[str, ...] = (), **options: Any
) -> SmallRun:
    """A run of a method with the values of its YAML file, quick ones where it needs them."""
    stream = group_of("stream", f"method={name}")
    return SmallRun(
        lambda made: method_for(name, made, *QUICK.get(name, ()), *overrides),
        scenario,
        arranged=lambda found: build(stream, stream=found),
        **options,
    )


def stopped_and_continued(
    where: Path,
    stops: list[int],
    straight: SmallRun | None = None,
    *,
    name: str,
    scenario: str,
    **options: Any,
) -> SmallRun:
    """A run with stops after so many steps each leaves what a run without leaves."""
    made = small_run(name, scenario, **options)
    options |= {"method": made.method, "scenario": scenario, "arranged": made.arranged}
    return contract.check_stops(where, stops, straight, **options)


def test_an_optimizer_whose_state_goes_on_is_continued(tmp_path: Path) -> None:
    """Within a task and between two; it trains otherwise than one that is fresh in each task."""
    adam = lambda rt: learner(mlp(), rt, lambda p: torch.optim.Adam(p, lr=0.01))  # noqa: E731
    kept = {"learner": adam, "schedule": scheduled(epochs=2, fresh_optimizer=False)}
    run = stopped_and_continued(tmp_path, [3, 8], name="ewc", scenario="task", **kept)
    fresh = small_run("ewc", "task", learner=adam)()
    assert not run.theta.equal(fresh.theta)


Straight = Callable[..., SmallRun]


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """A run from its beginning to its end in a folder, made once: to be looked at only."""

    @cache
    def made(name: str, scenario: str, device: str = "cpu") -> SmallRun:
        return small_run(
            name, scenario, device=device, folder=tmp_path_factory.mktemp("straight")
        )()

    return made


@pytest.fixture(scope="session")
def poisoned() -> Straight:
    """The same run once more, whose test sets while it trains, and finished tasks, are noise."""

    @cache
    def made(name: str, scenario: str, device: str = "cpu") -> SmallRun:
        with foreign_data_as_noise():
            return small_run(name, scenario, device=device)()

    return made


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "scenario"), PAIRS)
def test_runs_and_repeats(
    name: str, scenario: str, device: str, straight: Straight, poisoned: Straight
) -> None:
    """Twice the same parameters, accuracies and rows; theta stays whole, its state beside it."""
    one, two = straight(name, scenario, device), poisoned(name, scenario, device)
    contract.check_repeats(one, two)
    if name != "joint":
        contract.check_learns(one)


@pytest.mark.parametrize(("name", "scenario"), PAIRS)
def test_stop_and_continue(name: str, scenario: str, tmp_path: Path, straight: Straight) -> None:
    """In the first task, at its last step, before the very end: nothing shows."""
    whole = straight(name, scenario)
    stopped_and_continued(tmp_path, [3, 5, 15], whole, name=name, scenario=scenario)


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_every_kind_of_state_comes_back(name: str, tmp_path: Path) -> None:
    """Batch norm's statistics, Adam's moments, the augmentation's draws; stopped three times."""
    scenario = "class" if serves(name, "class") else "task"
    stops = [3, 7, 4]  # of 8 steps a task; the 10th and 14th: before and after halrp's factors
    stopped_and_continued(tmp_path, stops, name=name, scenario=scenario, learner=batch_norm)


@pytest.mark.parametrize("name", [name for name in ANY_NETWORK if name not in TRAIN_FEATURES])
def test_every_method_on_a_linearized_network(name: str, tmp_path: Path) -> None:
    """It learns, comes back, and where the tangent is taken stays where it is."""
    run = stopped_and_continued(tmp_path, [3, 9], name=name, scenario="task", learner=tangent)
    torch.manual_seed(5)
    start = dict(mlp(activation="leaky_relu").named_parameters())
    for key, value in run.made.learner.net.named_buffers():
        assert value.equal(start[key.replace("/", ".")]), key
    few = name == "packnet"  # of whose small network the first task takes nearly all
    assert run.progress.matrix.summary()["LA"] > (0.5 if few else 0.6) or name == "joint"


@pytest.mark.parametrize("name", [name for name in ANY_NETWORK if name != "gdumb"])  # it is refused
def test_frozen_batch_norm_comes_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first task batch norm trains; after it neither its statistics nor its weights move."""
    seen, measure = [], experiment.measure

    def looked_at(session: Any, row: int) -> None:
        seen.append(norms(session.learner.net))
        measure(session, row)

    monkeypatch.setattr(experiment, "measure", looked_at)
    scenario = "data" if serves(name, "data") else "task"
    frozen = scheduled(epochs=2, batch_norm="frozen")
    options: dict[str, Any] = {"learner": batch_norm, "schedule": frozen}
    whole = small_run(name, scenario, folder=tmp_path / "whole", **options)
    (tmp_path / "whole").mkdir()
    whole()
    trains = name not in (
        "independent",
        "ncm",
        "ranpac",
    )  # back to its first network, and never trained
    assert seen[0].equal(seen[1]) != trains and seen[1].equal(seen[2]) and seen[2].equal(seen[3])
    monkeypatch.undo()
    if name in ("er", "halrp", "independent"):
        stopped_and_continued(tmp_path, [3, 6, 4], whole, name=name, scenario=scenario, **options)


FOLDED = ["finetune", "ewc", "osla", "lwf", "er", "derpp", "gem", "agem"]


@pytest.mark.parametrize("name", FOLDED)
def test_batch_norm_is_folded_after_the_first_task(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fold changes no output; then gamma and the statistics stay, and the biases move."""
    folded = scheduled(epochs=2, batch_norm="folded")
    options: dict[str, Any] = {"learner": batch_norm, "schedule": folded}
    states: list[dict[str, Any]] = []
    outputs: list[Any] = []
    fold = Learner.fold_batch_norm

    def watched(made: Learner, task: Any) -> None:
        batch = next(task.chunks(20))
        with made.evaluating():
            outputs.append(made.logits(made.flat.theta, batch).detach())
            fold(made, task)
            outputs.append(made.logits(made.flat.theta, batch).detach())

    monkeypatch.setattr(Learner, "fold_batch_norm", watched)
    monkeypatch.setattr(
        experiment,
        "measure",
        lambda session, *_: states.append(copy.deepcopy(session.learner.net.state_dict())),
    )
    small_run(name, "data", **options)()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    assert len(outputs) == 2, "once, at the end of the first task"
    gammas = [k for k in states[1] if states[1][k].eq((1 + 1e-5) ** 0.5).all() and "weight" in k]
    assert len(gammas) == sum("running_mean" in key for key in states[1]) > 0
    for gamma in gammas:
        norm = gamma.removesuffix("weight")
        for part in ("weight", "running_mean", "running_var"):
            assert states[1][norm + part].equal(states[3][norm + part])
        assert not states[1][norm + "bias"].equal(states[3][norm + "bias"])
    monkeypatch.undo()
    stopped_and_continued(tmp_path, [3, 6, 4], name=name, scenario="data", **options)


@pytest.mark.parametrize("name", ["er", "halrp"])
def test_a_residual_network_comes_back(name: str, tmp_path: Path) -> None:
    """The package's own, with its batch norm and subsampled shortcuts."""

    def residual(rt: Any) -> Learner:
        net, seen = resnet(shape=(1, 4, 4)), identity(rt.device, channels=1)
        return learner(net, rt, lambda p: torch.optim.Adam(p, lr=0.01), transform=seen)

    scenario = "class" if serves(name, "class") else "task"
    stopped_and_continued(tmp_path, [11], name=name, scenario=scenario, learner=residual)


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_every_method_on_a_vision_transformer(name: str, tmp_path: Path) -> None:
    """torchvision's, with dropout and the class token as a parameter of its own."""

    def transformer(rt: Any) -> Learner:
        net: Any = VisionTransformer(4, 2, 1, 2, 8, 16, dropout=0.1, num_classes=6)
        net.conv_proj, net.head_name = torch.nn.Conv2d(1, 8, 2, stride=2), "heads.head"
        net = adopt(net, torch.zeros(1, 1, 4, 4))
        return learner(net, rt, lambda p: torch.optim.Adam(p, lr=0.02), transform=identity())

    slow = name in (
        "er_ace",
        "mir",
        "er_aml",
        "lucir",
        "xder",
        "l2p",
    )  # in class-IL, so few steps do not bring out new classes
    scenario = "class" if serves(name, "class") and not slow else "task"
    options: dict[str, Any] = {"name": name, "scenario": scenario, "learner": transformer}
    if name in ("er", "ewc"):
        run = stopped_and_continued(tmp_path, [3, 9], **options)
    else:
        run = small_run(**options)()
    if name not in ("joint", "wa"):  # which distils, in class-IL alone
        contract.check_learns(run)


def test_images_that_are_augmented_once_come_back(tmp_path: Path) -> None:
    """Each step draws once for its batch, and the memory has images that are not the task's."""

    def once(rt: Any) -> Learner:
        transform = Transform([0.2], [0.5], 4, 1, True, None, 0.0, "once", rt.device)
        return learner(mlp(), rt, transform=transform)

    run = stopped_and_continued(tmp_path, [11], name="er", scenario="data", learner=once)
    memory, raw = run.made.memory, torch.cat([task.x for task in run.stream.tasks])  # type: ignore[attr-defined]
    kept = memory.rows.x[: len(memory)].flatten(1)
    same = (kept[:, None] == raw.flatten(1)[None]).all(-1).any(1)
    assert 0 < same.float().mean() < 0.5, "one window of 18 is the image itself"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_warm_up_comes_once(scenario: str, tmp_path: Path) -> None:
    """At a task's beginning, not again where a run comes back in its middle."""
    options: dict[str, Any] = {"name": "dlcft", "scenario": scenario, "learner": tangent}
    warm = scheduled(epochs=2, warm_up="head")
    run = stopped_and_continued(tmp_path, [3, 6, 4], schedule=warm, **options)
    assert not run.theta.equal(small_run(**options)().theta)


def test_a_kill_costs_what_came_after_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checkpoint at every step, one step; the learning rate anneals on where it was."""
    options: dict[str, Any] = {"name": "er", "scenario": "data", "learner": batch_norm}
    options["schedule"] = scheduled(epochs=2, annealing="cosine")
    straight = small_run(**options)()
    with pytest.raises(Killed):
        small_run(**options, folder=tmp_path, stop_at=11, killed=True, save_every=0)()
    again, steps = small_run(**options, folder=tmp_path), list[int]()
    monkeypatch.setattr(again, "advanced", lambda stop: steps.append(1))
    again()
    assert len(steps) == STEPS - 10
    assert again.theta.equal(straight.theta)


def norms(net: Any) -> Tensor:
    """All that batch norm holds."""
    layers = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return torch.cat([v.detach().flatten() for m in layers for v in m.state_dict().values()])


def test_a_probe_changes_nothing_and_comes_back(tmp_path: Path) -> None:
    probe = MaxEigenvalue(every=3, samples=10, iterations=5)
    watched, alone = small_run("er", "class", probe=probe)(), small_run("er", "class")()
    assert watched.theta.equal(alone.theta)
    seen = [row for row in watched.rows if row["event"] == "probe"]
    assert [row["step"] for row in seen] == [0, 3, 6, 8, 8, 11, 14, 16, 16, 19, 22, 24]
    assert all(row["max_eigenvalue"] > 0 for row in seen)
    stopped_and_continued(tmp_path, [7], name="er", scenario="class", probe=probe)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_keeps_does_not_grow(name: str) -> None:
    """From the second task on; but for a memory or network a task, old data, anchors apart."""
    made = small_run(name, "data" if serves(name, "data") else "task")
    options = {"method": made.method, "scenario": made.scenario, "arranged": made.arranged}
    contract.check_memory(name in GROWS, **options)


def test_anchors_apart_grow_with_the_tasks() -> None:
    made, stream = learner(mlp()), blobs("data")
    method = method_for("ewc", made, "merging=apart")
    kept = []
    for task in stream.tasks:
        method.end_task(task)
        kept.append(checkpoint.state_bytes(method))
    assert kept[2] - kept[1] == 2 * made.flat.theta.numel() * 4
    assert len(method.penalty.quadratics) == 3


@pytest.mark.parametrize(
    ("name", "scenario", "stop"), [("er", "class", 11), ("emcl", "data", 11), ("halrp", "task", 14)]
)
def test_a_compiled_run_comes_back(name: str, scenario: str, stop: int, tmp_path: Path) -> None:
    """By the compiled gradient, by the compiled inner loop, and after halrp's factors are made."""
    stopped_and_continued(tmp_path, [stop], name=name, scenario=scenario, compiler=compiler())


def test_killed_and_stopped_before_the_next_row(tmp_path: Path) -> None:
    """Rows after the checkpoint are cut off; a checkpoint before the next row counts right."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small_run("er", "data", folder=tmp_path / "a")()
    with pytest.raises(StopRun):
        small_run("er", "data", folder=tmp_path / "b", stop_at=6)()
    with (tmp_path / "b/metrics.jsonl").open("a") as file:  # what a killed run had gone on to
        file.write('{"event": "step", "step": 10, "task": 1, "loss": 0.5}\n{"event": "st')
    with pytest.raises(StopRun):
        small_run("er", "data", folder=tmp_path / "b", stop_at=1)()
    small_run("er", "data", folder=tmp_path / "b")()
    lines = [(tmp_path / part / "metrics.jsonl").read_bytes() for part in "ab"]
    assert lines[0] == lines[1]


def test_other_data_or_another_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StopRun):
        small_run("er", "data", folder=tmp_path, stop_at=3)()
    with pytest.raises(UnusableError, match="was written with data blobs, now it is other"):
        begin(tmp_path, machine()).require_same(data="other")
    with pytest.raises(UserError, match=r"checkpoint.pt: is of device cpu, this run has device c"):
        begin(tmp_path, machine(), device="cuda")


@pytest.mark.parametrize(("name", "scenario"), PAIRS)
def test_sees_no_test_data_and_no_other_task(
    name: str, scenario: str, straight: Straight, poisoned: Straight
) -> None:
    """Whoever kept a reference to a test set or to a finished task has learned from noise."""
    clean, other = straight(name, scenario), poisoned(name, scenario)
    contract.check_foreign_data(clean, other, name in HOLDS_DATA)


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_leaves_no_trace(name: str, straight: Straight) -> None:
    scenario = "data" if serves(name, "data") else "task"
    contract.check_evaluation(straight(name, scenario))


@pytest.mark.parametrize(("name", "scenario"), PAIRS)
def test_networks_are_those_that_predict(name: str, scenario: str, straight: Straight) -> None:
    """model.safetensors and theta_sha256 are of what `predict` uses."""
    contract.check_networks(straight(name, scenario))


def test_accuracy_counts_every_sample_once() -> None:
    run = small_run("finetune", "class")()
    test = run.stream.tests[1]
    rows = Batch(test.x, test.y, test.t)
    run.made.learner.net.eval()
    with torch.no_grad():
        logits = run.made.predict(rows)
    hits = sum(int(logits[i].argmax() == rows.y[i]) for i in range(len(rows.y)))
    assert accuracies(run.made, [test], 7) == [hits / len(rows.y)]


def test_masks_decide_what_competes() -> None:
    """Class-IL can do no better than task-IL with the same parameters, whose mean is ACC_task."""
    run = small_run("finetune", "class")()
    wide = accuracies(run.made, run.stream.tests, 50)
    known = classes_if_task_known(run.made, run.stream)
    assert known is not None
    both = accuracies_among(run.made, run.stream.tests, 50, [None, known])
    run.made.learner.reveal(SCENARIOS["task"](run.stream.classes, 2), torch.tensor([2]), None)
    narrow = accuracies(run.made, run.stream.tests, 50)
    assert all(n >= w for n, w in zip(narrow, wide, strict=True)) and narrow != wide
    assert both == [wide, narrow]
    assert run.progress.summary()["ACC_task"] == pytest.approx(sum(narrow) / len(narrow))
    assert classes_if_task_known(run.made, run.stream) is None


def test_acc_task_is_measured_in_class_incremental_runs_alone() -> None:
    found = {name: small_run("finetune", name)().progress.summary() for name in SCENARIOS}
    assert [name for name in found if "ACC_task" in found[name]] == ["class"]
    assert found["class"]["ACC"] <= found["class"]["ACC_task"] <= 1


def test_which_entries_are_measured() -> None:
    def shape(scenario: str, when: Any) -> list[str]:
        chosen = Evaluation(when, "test", 0.1, False, None, 50)
        run = small_run("finetune", scenario, evaluation=chosen)()
        rows = [run.progress.matrix.initial, *run.progress.matrix.values]
        return ["".join("." if v != v else "x" for v in row.tolist()) for row in rows]

    assert shape("data", "seen") == [".xx", "xx.", "xxx", "xxx"]
    assert shape("data", "all") == ["xxx", "xxx", "xxx", "xxx"]
    assert shape("data", "final") == ["...", "x..", ".x.", "xxx"]
    assert shape("data", "last") == ["...", "...", "...", "xxx"]
    assert shape("task", "seen") == [".xx", "xx.", "xxx", "xxx"]
    assert shape("class", "seen") == ["...", "x..", "xx.", "xxx"]


def test_joint_learns_everything_at_once() -> None:
    run = small_run("joint", "task")()
    assert len(run.stream.tasks) == 1 and run.progress.steps == 2 * -(-90 // 8)
    assert run.progress.matrix.values[:2].isnan().all() and run.progress.matrix.acc > 0.6


def test_first_task_is_the_same_for_all() -> None:
    """No past, nothing to protect: finetune, ER's first batches aside, EWC and A-GEM agree."""
    first = {
        name: small_run(name, "task")().progress.matrix.values[0, 0].item()
        for name in ("finetune", "ewc", "agem", "osla", "mas", "si", "l2", "lwf", "distill")
    }
    assert len(set(first.values())) == 1


def test_nearest_neighbours_of_the_heads_input() -> None:
    """After each task, against a loop; nothing else changes."""
    watched, alone = small_run("er", "class", probe=KNN(3, 7))(), small_run("er", "class")()
    assert watched.theta.equal(alone.theta)
    seen = [row["knn"] for row in watched.rows if row["event"] == "probe"]
    assert len(seen) == 3
    made, stream = watched.made.learner, watched.stream
    whole = [
        Batch(*(torch.cat([getattr(t, f) for t in part]) for f in "xyt"))
        for part in (stream.tasks, stream.tests)
    ]
    bank, asked = (torch.nn.functional.normalize(made.features(b), dim=1) for b in whole)
    hits = 0
    for x, y in zip(asked, whole[1].y, strict=True):
        near = (bank @ x).topk(3)
        votes: dict[int, tuple[int, float]] = {}
        for label, similar in zip(whole[0].y[near.indices].tolist(), near.values, strict=True):
            count, total = votes.get(label, (0, 0.0))
            votes[label] = count + 1, total + float(similar)
        hits += max(votes, key=lambda label: votes[label]) == int(y)
    assert seen[-1] == hits / len(asked)
    assert seen[-1] > 0.5


def test_one_test_set_for_all_tasks_is_tested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In data-IL, where nothing tells the tasks apart."""
    run = small_run("finetune", "data")()
    (test, *_), seen = run.stream.tests, []
    shared = [Task(t, test.x, test.y, torch.full_like(test.t, t)) for t in range(3)]
    alone = accuracies(run.made, [test], 7)
    predict = run.made.predict
    monkeypatch.setattr(run.made, "predict", lambda b: seen.append(len(b.y)) or predict(b))
    assert accuracies(run.made, shared, 7) == alone * 3
    assert sum(seen) == len(test)
