"""Steps that are planned ahead and run as CUDA graphs: the results of steps one by one.

The device and its graphs are pretended (`pretended_cuda`, `pretended_graphs`): a replay carries out
the operations of a captured step with the numbers of the capture, and nothing else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, learner, machine, mlp, scheduled
from omegaconf import open_dict
from pretended_cuda import WAITED_FOR, PretendedCuda
from pretended_graphs import NotPermitted
from test_pretended_cuda import KINDS, PLAIN, folded, residual, short_run, strided
from torch import Tensor

from cl_bench.base.exceptions import StopRun, UserError
from cl_bench.config.name import config_hash
from cl_bench.core.buffer import Reservoir
from cl_bench.core.decisions import decide
from cl_bench.core.graphs import Graphs
from cl_bench.core.learner import Learner
from cl_bench.core.optim import SGD, fused_on
from cl_bench.core.types import Batch
from cl_bench.data.boundaries import online
from cl_bench.data.stream import with_held_out
from cl_bench.engine import experiment, step_pattern
from cl_bench.engine.session import Session
from cl_bench.engine.step_pattern import Pattern, watched
from cl_bench.methods.base import Method
from cl_bench.methods.er import ER
from cl_bench.methods.finetune import Finetune
from cl_bench.probes.knn import KNN
from cl_bench.testing.small import batch
from cl_bench.testing.small_run import EVALUATION, Killed, SmallRun, batch_norm, perceptron, tangent

PLANNED = {**PLAIN, "graphs": True}
THREE_EPOCHS = scheduled(epochs=3)  # so that a graph is replayed after short batches
NO_PATTERN = {  # methods that cannot be planned in each task, and why
    "gem": "it reads a value in each step",  # for its quadratic program
    "halrp": "HALRP.progress.samples changes with each step",  # it ends the warm-up
    "packnet": "PackNet.samples changes with each step",  # until it prunes
    "rwalk": "RWalk.steps changes with each step",  # until the interval ends
    "ncm": "FeatureClassifier.left changes with each step",  # until an epoch is over
    "ranpac": "RanPAC.left changes with each step",
    "gss": "buffer=scored needs the gradients of each batch",
    "gdumb": "buffer=greedy reads the labels of each batch",
}
ONE_EPOCH = ("gdumb", "ncm", "ranpac")  # methods that make use of the first epoch alone


@pytest.fixture(autouse=True)
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions of the runs that a test makes."""
    kept, run = [], experiment.run

    def noted(session: Session) -> None:
        kept.append(session)
        run(session)

    monkeypatch.setattr(experiment, "run", noted)
    return kept


def by_graphs(name: str, *overrides: str, **options: Any) -> tuple[SmallRun, int]:
    """A run on the pretended device with graphs, and how often one was replayed."""
    with PretendedCuda() as device:
        options = {"schedule": THREE_EPOCHS, "machine": PLANNED, **options}
        run = prepared(name, *overrides, **options)()
        assert not device.count("mismatch")
    return run, device.events["graph", "replay"]


def one_by_one(name: str, *overrides: str, **options: Any) -> SmallRun:
    """The same run without graphs, on a CPU; on the pretended device where that rounds otherwise.

    Such are an Adam that is capturable, which PyTorch refuses on a CPU, and large eigenproblems.
    """
    options = {"schedule": THREE_EPOCHS, "machine": PLAIN, "learner": perceptron, **options}
    if options["learner"] in BY_SGD and "curvature=full" not in overrides:
        return prepared(name, *overrides, device="cpu", **options)()
    options["learner"] = partial(_capturable, options["learner"])
    with PretendedCuda():
        return prepared(name, *overrides, **options)()


def prepared(name: str, *overrides: str, arranged: Any = None, **options: Any) -> SmallRun:
    """A run that is not made yet, on the stream as `arranged` returns it."""
    run = short_run(name, *overrides, **options)
    return run if arranged is None else replace(run, arranged=arranged)


def _capturable(net: Callable[[Any], Learner], rt: Any) -> Learner:
    made = net(rt)
    plain = made._make_optimizer

    def make(parameters: Any) -> Any:
        optimizer = plain(parameters)
        for group in optimizer.param_groups:
            group |= {"capturable": True} if "capturable" in group else {}
        return optimizer

    made._make_optimizer = make
    return made


def plain_sgd(rt: Any) -> Learner:
    """Two of a ResNet's blocks, with batch norm, by plain SGD."""
    made = residual(rt)
    return learner(made.net, rt, transform=made.transform)


def momentum(rt: Any) -> Learner:
    return learner(mlp(), rt, partial(SGD, lr=0.05, momentum=0.9), 0.01)


def torch_momentum(rt: Any) -> Learner:
    return learner(mlp(), rt, partial(torch.optim.SGD, lr=0.05, momentum=0.9), 0.01)


def assert_same(one: SmallRun, two: SmallRun, tolerance: float = 0.0) -> None:
    """Parameters, statistics, accuracies, logged losses and counts of gradients."""
    close: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(one.theta, two.theta, **close)
    buffers = [list(run.made.learner.net.buffers()) for run in (one, two)]
    torch.testing.assert_close(*buffers, **close)
    if tolerance:
        return
    matrices = [run.progress.matrix.values.nan_to_num(-1) for run in (one, two)]
    assert matrices[0].equal(matrices[1])
    assert json.dumps(one.rows) == json.dumps(two.rows)  # in which nan equals nan
    assert one.made.learner.sample_gradients == two.made.learner.sample_gradients


BY_SGD = (perceptron, plain_sgd, momentum, torch_momentum, folded)
EACH = [(name, perceptron) for name in KINDS if name not in NO_PATTERN]
EACH += [(name, plain_sgd) for name in ("finetune", "der", "agem", "distill", "dlcft", "emcl")]


@pytest.mark.parametrize(("name", "net"), EACH)
def test_every_method(name: str, net: Any, sessions: list[Session]) -> None:
    """Bit for bit, on the pretended device by graphs and on a CPU by calls from the tables."""
    on_a_cpu = {"device": "cpu", "schedule": THREE_EPOCHS, "learner": net}
    plain = short_run(name, **on_a_cpu)()
    run, replays = by_graphs(name, learner=net)
    assert_same(run, plain)
    assert replays >= 5 and sessions[-1].progress.planned >= 8
    if net is perceptron:
        assert_same(short_run(name, machine=PLANNED, **on_a_cpu)(), plain)
        assert sessions[-1].progress.planned == sessions[-2].progress.planned


@pytest.mark.parametrize("name", NO_PATTERN)
def test_a_method_without_a_pattern_goes_step_by_step(name: str, sessions: list[Session]) -> None:
    """The record says why."""
    run, _ = by_graphs(name)
    found = sessions[-1].measured()["unplanned"]
    assert all(reason.startswith(NO_PATTERN[name]) for reason in found.values())
    assert {"1", "2"} <= found.keys() or name in ONE_EPOCH
    assert_same(run, one_by_one(name))
    assert "unplanned" not in sessions[-1].measured()


EXPLICIT = ("method.step=explicit", "method.strength=0.01")
OPTIONS = [
    (("finetune",), momentum),
    (("er",), torch_momentum),
    (("lwf",), residual),  # with Adam
    (("er", "method.combine=sum"), residual),
    (("agem", "method.reference=tasks"), perceptron),
    (("lamaml", "method.order=second"), perceptron),
    (("mer", "method.algorithm=6"), perceptron),
    (("emcl", "method.inner=gradient", "method.strength=0.01"), perceptron),
    (("ewc", "curvature=kfac"), momentum),
    (("ewc", "curvature=ekfac", *EXPLICIT), perceptron),
    (("ewc", "curvature=kfac", "merging=apart", *EXPLICIT), perceptron),
    (("ewc", "curvature=full"), perceptron),
    (("ewc",), folded),
    (("dlcft", "method.memory=always"), tangent),
    (("lwf", "method.source=buffer", "buffer=everything"), perceptron),
    (("apd",), residual),
    (("hat",), strided),
]


@pytest.mark.parametrize(("words", "net"), OPTIONS)
def test_options_of_methods(words: tuple[str, ...], net: Any) -> None:
    run, replays = by_graphs(*words, learner=net)
    assert_same(run, one_by_one(*words, learner=net))
    assert replays >= 5


@pytest.mark.parametrize("name", ["finetune", "der", "lwf"])
@pytest.mark.parametrize(
    "changes", [{"annealing": "cosine"}, {"ramp": 1.5}, {"clip": 0.1}], ids=str
)
def test_schedules(name: str, changes: dict[str, Any]) -> None:
    """A learning rate that changes is a tensor, with which a step rounds otherwise."""
    options = {"schedule": scheduled(epochs=3, **changes), "learner": momentum}
    run, replays = by_graphs(name, **options)
    assert replays >= 5
    assert_same(run, one_by_one(name, **options), tolerance=0.0 if "clip" in changes else 1e-6)
    called = short_run(name, device="cpu", machine=PLANNED, **options)()
    assert called.theta.equal(run.theta.cpu())


READ_RATES = {"cmaml", "emcl", "apd", "halrp", "ewc", "si"}
SOME = ["er", "ewc", "si", "dlcft", "emcl", "cmaml", "apd", "halrp", "mir"]


@pytest.mark.parametrize("name", SOME)
def test_rates_are_numbers_where_a_step_reads_them(name: str, sessions: list[Session]) -> None:
    """Then no step waits for a rate, but for those until that was found."""
    options = {"schedule": scheduled(epochs=2, annealing="cosine"), "learner": momentum}
    with PretendedCuda() as plain:
        short_run(name, machine=PLAIN, **options)()
    with PretendedCuda() as device:
        run = short_run(name, machine=PLANNED, **options)()
    more = device.count("sync", "d2h") - plain.count("sync", "d2h")
    assert run.progress.rates_are_numbers == (name in READ_RATES)
    assert bool(sessions[-1].progress.unplanned) == (name in READ_RATES)
    assert more <= (300 if name in READ_RATES else 0)  # of at most two steps


def test_an_explicit_penalty_is_annealed_by_graphs() -> None:
    words = "ewc", "method.step=explicit", "method.strength=0.01"
    run, replays = by_graphs(*words, schedule=scheduled(epochs=3, annealing="cosine"))
    assert replays >= 10 and not run.progress.rates_are_numbers


AROUND = {
    "probe": {"probe": KNN(3, 16)},
    "tests along": {"evaluation": replace(EVALUATION, every=24)},
    "no boundaries": {"arranged": partial(online, first=None)},
    "early stopping": {
        "schedule": scheduled(epochs=3, patience=1),
        "arranged": partial(with_held_out, fraction=0.2, seed=0),
    },
    "frozen norm": {"schedule": scheduled(epochs=3, batch_norm="frozen"), "learner": residual},
    "warm-up": {"schedule": scheduled(epochs=3, warm_up="head")},
    "augmentation": {"learner": batch_norm},
    "tangent": {"learner": tangent},
    "bf16": {"machine": {"precision": "bf16", "channels_last": True}, "learner": residual},
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_the_steps(around: str) -> None:
    """A plan ends where something looks at the run."""
    options = {"machine": PLAIN, **AROUND[around]}
    planned = {**options, "machine": {**options["machine"], "graphs": True}}
    run, replays = by_graphs("er", **planned)
    assert_same(run, one_by_one("er", **options))
    assert replays >= 3


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("name", ["der", "ewc", "emcl"])
def test_a_run_goes_on(name: str, killed: bool, tmp_path: Path) -> None:
    """Asked to stop within a plan: it stops after it, and no decision is lost or made twice."""
    whole = one_by_one(name)
    with PretendedCuda() as device:
        options = {"machine": PLANNED, "schedule": THREE_EPOCHS, "folder": tmp_path}
        first = short_run(name, stop_at=13, killed=killed, **options, save_every=0.0)
        with pytest.raises(Killed if killed else StopRun):
            first()
        again = short_run(name, **options)()
        assert device.events["graph", "replay"] >= 3
    assert again.theta.cpu().equal(whole.theta.cpu())
    assert again.progress.planned > 3


class Counts(Finetune):
    """A method that counts its steps."""

    def __init__(self, made: Learner) -> None:
        super().__init__(made)
        self.steps = 0

    def observe(self, batch: Batch) -> Tensor:
        self.steps += 1
        return super().observe(batch)


class Draws(Finetune):
    """A method that draws by itself."""

    def observe(self, batch: Batch) -> Tensor:
        return super().observe(batch.rows(torch.randperm(len(batch.y), generator=self.learner.rng)))


class DrawsElsewhere(Finetune):
    """A method that draws from Python's generator."""

    def observe(self, batch: Batch) -> Tensor:
        return super().observe(batch.rows(slice(random.randrange(3), None)))


class Decides(Finetune):
    """A method that draws in the way in which it can be planned."""

    def observe(self, batch: Batch) -> Tensor:
        def order() -> Tensor:
            return torch.randperm(8, generator=self.learner.rng)

        return super().observe(batch.rows(decide(order, batch.y)) if len(batch.y) == 8 else batch)


class Reads(Finetune):
    """A method whose step depends on a value."""

    def observe(self, batch: Batch) -> Tensor:
        loss = super().observe(batch)
        return super().observe(batch) if loss > 1e9 else loss


class Solves(Finetune):
    """A method whose step asks whether a matrix can be inverted."""

    def observe(self, batch: Batch) -> Tensor:
        torch.linalg.inv(torch.eye(2, device=batch.y.device))
        return super().observe(batch)


class Masks(Finetune):
    """A method that takes as many samples as have a certain label."""

    def observe(self, batch: Batch) -> Tensor:
        rows = batch.y >= 0
        return super().observe(Batch(batch.x[rows], batch.y[rows], batch.t[rows]))


class Renews(Finetune):
    """A method with a new tensor after each step, and a view of the one of before."""

    def __init__(self, made: Learner) -> None:
        super().__init__(made)
        self.loss, self.last, self.kept = torch.zeros(()), torch.zeros(()), [torch.zeros(())]

    def observe(self, batch: Batch) -> Tensor:
        self.last, self.loss = self.loss.detach(), super().observe(batch)
        return self.loss


class Lists(Renews):
    """A method with a list of tensors that are made anew."""

    def observe(self, batch: Batch) -> Tensor:
        self.kept = [Finetune.observe(self, batch)]
        return self.kept[0]


class ReplacesData(Renews):
    """A method that gives a tensor other memory."""

    def observe(self, batch: Batch) -> Tensor:
        self.loss.data = Finetune.observe(self, batch)
        return self.loss.clone()


class CountsInTheNetwork(Finetune):
    """A method whose network counts."""

    def observe(self, batch: Batch) -> Tensor:
        net: Any = self.learner.net
        net.calls = getattr(net, "calls", 0) + 1
        return super().observe(batch)


class ReplacesInTheLearner(Finetune):
    """A method that gives its learner another number in each step."""

    def observe(self, batch: Batch) -> Tensor:
        self.learner.clip = (self.learner.clip or 1.0) + 0.5
        return super().observe(batch)


class AsksHowMany(ER):
    """A method that replays when its memory has enough samples."""

    def observe(self, batch: Batch) -> Tensor:
        if len(self.memory) < 8:
            self.memory.add(batch)
            return self.learner.descend(batch)
        return super().observe(batch)


class Grows(Reservoir):
    """A memory that changes outside of its decisions."""

    def add(self, batch: Batch) -> None:
        self.seen += 1
        super().add(batch)


class ReadsLabels(Reservoir):
    """A memory that decides by the labels."""

    def _offer(self, batch: Batch) -> dict[int, int]:
        found = super()._offer(batch)
        return {place: i for place, i in found.items() if int(batch.y[i]) % 2}


def replay(memory: type[Reservoir], kind: type[ER] = ER) -> Callable[[Learner], Method]:
    """A method that replays from a memory of this kind."""
    return lambda made: kind(made, partial(memory, 20, "all", False), 4, "mean")


FAULTS: list[tuple[Any, str | None]] = [
    (Counts, "Counts.steps changes with each step"),
    (Draws, "it draws from learner.rng outside of `decide` (core.decisions)"),
    (DrawsElsewhere, "it draws from a generator of Python, NumPy or PyTorch; use learner.rng"),
    (Reads, "it reads a value in each step, at test_graphs.py:"),
    (Solves, "it reads a value in each step, at test_graphs.py:"),
    (Masks, "it takes rows by a mask in each step, at test_graphs.py:"),
    (Lists, "Lists.kept.0 is another tensor after each step; write into it in place"),
    (ReplacesData, "ReplacesData.loss is another tensor after each step; write into it in place"),
    (CountsInTheNetwork, "network..calls "),
    (ReplacesInTheLearner, "learner.clip changes with each step"),
    (
        replay(Reservoir, AsksHowMany),
        "it reads filled of its memory, which changes while steps are planned; `memory.empty`",
    ),
    (replay(Grows), "its memory changes outside of its decisions (core.decisions)"),
    (replay(ReadsLabels), "its memory reads the samples before it chooses among them"),
    (replay(Reservoir), None),
    (Decides, None),
    (Renews, None),
]


@pytest.mark.parametrize(("kind", "reason"), FAULTS)
def test_what_is_found_in_a_step(kind: Any, reason: str | None) -> None:
    """Each kind of fault that a captured step would have is seen before."""
    made = kind(learner(mlp(), machine()))
    if hasattr(made, "memory"):
        made.memory.add(batch(8))
    _, found = watched(made, lambda: made.observe(batch(8)))
    if reason is None:
        assert isinstance(found, Pattern)
    else:
        assert isinstance(found, str) and found.startswith(reason)


def test_all_that_waits_on_the_device_is_watched_for() -> None:
    assert step_pattern.READ >= WAITED_FOR


class TakesANumber(Finetune):
    """A method that takes a number of the CPU, which changes in place."""

    def __init__(self, made: Learner) -> None:
        super().__init__(made)
        self.steps = torch.zeros(())

    def observe(self, batch: Batch) -> Tensor:
        self.steps += 1
        return super().observe(batch) / self.steps


@pytest.mark.parametrize("kind", [Decides, Renews])
def test_a_method_of_ones_own(kind: type[Method]) -> None:
    found = {}
    for graphs in (False, True):
        with PretendedCuda() as device:
            run = SmallRun(kind, "data", device="cuda", machine={**PLAIN, "graphs": graphs})()
            found[graphs] = run.theta.cpu(), device.events["graph", "replay"], run.rows
            if isinstance(run.made, Renews):
                found[graphs] = (*found[graphs], run.made.last.item(), run.made.loss.item())
    assert found[False][0].equal(found[True][0]) and found[False][2:] == found[True][2:]
    assert found[True][1] > 3 and not found[False][1]


@pytest.mark.parametrize("graphs", [False, True])
def test_decisions_are_indices(graphs: bool) -> None:
    """Floats would be rounded in the table of a plan."""

    class Floats(Finetune):
        def observe(self, batch: Batch) -> Tensor:
            decide(lambda: torch.rand(1, generator=self.learner.rng), batch.y)
            return super().observe(batch)

    with pytest.raises(TypeError, match=r"must be indices, int64; it is torch\.float32"):
        SmallRun(Floats, "data", machine={**PLAIN, "graphs": graphs})()


def test_a_number_of_the_cpu_is_seen_on_the_device(sessions: list[Session]) -> None:
    with PretendedCuda():
        SmallRun(TakesANumber, "data", device="cuda", machine=PLANNED)()
    reasons = sessions[-1].progress.unplanned.values()
    assert all(each.startswith("it takes a value from the CPU in each step") for each in reasons)
    assert len(reasons) == 3


def test_a_step_that_cannot_be_captured_goes_on(
    sessions: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch refuses something that was not foreseen: nothing is lost, and the record has it."""

    with PretendedCuda() as device:
        monkeypatch.setattr(Graphs, "capture", lambda self, step: _failing(device, step))
        run = short_run("emcl", machine=PLANNED, schedule=THREE_EPOCHS, learner=perceptron)()
    assert_same(run, one_by_one("emcl"))
    assert (
        sessions[0]
        .progress.unplanned[1]
        .startswith("a graph cannot hold its step: operation not perm")
    )


def _failing(device: PretendedCuda, step: Any) -> Any:
    """Record the step and undo it, as a capture does, and refuse it at its end."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(device.generator("cuda"))
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        step()
    raise RuntimeError("operation not permitted when stream is capturing")


class EveryFourth(Reservoir):
    """A memory that keeps a sample of every fourth batch alone."""

    def _offer(self, batch: Batch) -> dict[int, int]:
        self.seen += 1
        if self.seen % 4:
            return {}
        self.filled += 1
        return {self.filled - 1: 0}


def test_decisions_of_other_shapes_end_a_plan() -> None:
    """A draw of fewer samples than are asked for has one more when the memory has one more."""
    method = replay(EveryFourth)
    runs = []
    for device, graphs in (("cpu", False), ("cpu", True), ("cuda", True)):
        with PretendedCuda() if device == "cuda" else nullcontext():
            options = {"schedule": scheduled(epochs=5), "machine": {**PLAIN, "graphs": graphs}}
            runs.append(SmallRun(method, "data", device=device, **options)())
    assert all(run.theta.cpu().equal(runs[0].theta) for run in runs)


def test_what_a_graph_refuses() -> None:
    """The pretended graph, as a real one: waits, copies, and draws it was not told of."""
    with PretendedCuda() as device:
        draws = device.generator("cuda")
        x = torch.ones(3, device="cuda")
        steps = {
            "wait": lambda: x * x.sum().item(),
            "copy": lambda: x + torch.ones(3).to("cuda"),
            "draw": lambda: x + torch.rand(3, generator=device.generator("cuda"), device="cuda"),
        }
        for step in steps.values():
            with pytest.raises(NotPermitted):
                Graphs(draws).capture(step)
        replay = Graphs(draws).capture(lambda: x.add_(1))
        assert x.sum().item() == 3  # captured, not carried out
        assert replay().sum().item() == 6 and replay().sum().item() == 9


def test_draws_of_a_graph_go_on() -> None:
    """As those of steps one by one, from the state in which the generator is."""
    with PretendedCuda() as device:
        one, two = (device.generator("cuda").manual_seed(1) for _ in range(2))
        replay = Graphs(one).capture(lambda: torch.rand(3, generator=one, device="cuda"))
        for _ in range(3):
            assert replay().equal(torch.rand(3, generator=two, device="cuda"))


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"runtime.graphs=true: does not go with runtime.compile"):
        machine(graphs=True, compile=True)
    with PretendedCuda(kind="mps"), pytest.raises(UserError, match="not on mps"):
        machine("mps", graphs=True)


@pytest.mark.parametrize(
    ("made", "fused"),
    [
        (partial(torch.optim.Adam, lr=0.1), True),
        (partial(torch.optim.Adam, lr=0.1, foreach=True), None),
        (partial(torch.optim.Adam, lr=0.1, fused=False), False),
        (partial(SGD, lr=0.1, momentum=0.9), None),
    ],
)
def test_optimizers_of_pytorch_are_fused(made: Any, fused: bool | None) -> None:
    assert fused_on(torch.device("cuda"), made).keywords.get("fused") is fused
    assert fused_on(torch.device("cpu"), made).keywords.get("fused") is fused
    assert fused_on(torch.device("mps"), made) is made


def test_the_hash_without_graphs_is_as_it_was() -> None:
    """The option is no part of it unless it is on."""
    plain, graphs = composed(), composed("runtime.graphs=true")
    found = config_hash(plain)
    assert found != config_hash(graphs)
    with open_dict(plain):
        del plain.runtime.graphs
    assert config_hash(plain) == found
