"""Runs on a CUDA device that is pretended: nothing on two devices, few waits, the CPU's results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    SCENARIOS,
    class_of,
    identity,
    learner,
    mlp,
    names,
    one_of_each_class,
    resnet,
    scheduled,
)
from pretended_cuda import Mismatch, PretendedCuda
from test_contract import PLAIN_ALONE, small_run
from test_l2p import on_prompts
from torch import Tensor, nn

from cl_bench.base.exceptions import StopRun
from cl_bench.core.learner import Learner
from cl_bench.curvature import base
from cl_bench.engine import checkpoint
from cl_bench.models.added import with_lora, with_random_features
from cl_bench.models.strided import StridedConvNet
from cl_bench.probes.knn import KNN
from cl_bench.probes.max_eigenvalue import MaxEigenvalue
from cl_bench.testing.small import blobs
from cl_bench.testing.small_run import SmallRun, batch_norm, perceptron, tangent

KINDS = one_of_each_class("emcl_replay", "joint")
FEWER = {  # steps than elsewhere, as each operation is looked at
    **dict.fromkeys(("lamaml", "cmaml"), ("method.passes=1", "method.replay=2")),
    "mer": ("method.batches=1", "method.replay=2"),
    "gdumb": ("method.epochs=3",),
}
WAITS = ("sync", "h2d", "d2h")
# solves a quadratic program, reads labels, draws by scores: on the CPU
STEPS_THAT_WAIT = {"gem", "gdumb", "gss"}
PLAIN = {"channels_last": False}  # one layout on both devices, so that convolutions round alike
ON_THE_CPU = (".step",)  # what Adam reads in each step is a number


@pytest.fixture(autouse=True)
def any_algorithm() -> Iterator[None]:
    """Restore PyTorch's default after each test."""
    yield
    torch.use_deterministic_algorithms(False)


def residual(rt: Any) -> Learner:
    """Two of a ResNet's blocks, with batch norm, trained by Adam."""
    net: Any = resnet(shape=(1, 4, 4))
    net.blocks, net.head = nn.Sequential(net.blocks[0], net.blocks[2]), nn.Linear(8, 6)
    seen = identity(rt.device)
    return learner(net, rt, lambda p: torch.optim.Adam(p, lr=0.01), transform=seen)


def folded(rt: Any) -> Learner:
    """The same, its batch norm folded into the convolutions."""
    return learner(resnet(shape=(1, 4, 4), norm="folded"), rt, transform=identity(rt.device))


def strided(rt: Any) -> Learner:
    """Convolutions and linear layers without batch norm, trained by Adam."""
    net = StridedConvNet((1, 4, 4), 6, [4, 6], [8], "relu", "kaiming", "same")
    adam = partial(torch.optim.Adam, lr=0.01)
    return learner(net, rt, adam, transform=identity(rt.device))


NETWORKS = {"mlp": perceptron, "norm": batch_norm, "resnet": residual, "folded": folded}
NETWORKS |= {"tangent": tangent, "strided": strided, "prompts": on_prompts}
NETWORKS |= {
    "lora": lambda rt: learner(with_lora(mlp(), 2), rt),
    "random features": lambda rt: learner(with_random_features(mlp(), 8), rt),
}


def short_run(name: str, *overrides: str, device: str = "cuda", **options: Any) -> SmallRun:
    """A run of three tasks with four steps each."""
    scenario = next(s for s in SCENARIOS if s in class_of(name).scenarios)
    epochs = 2 if name == "halrp" else 1  # of which it spends one on its warm-up
    options = {"schedule": scheduled(epochs=epochs), "machine": PLAIN, **options}
    overrides = (*FEWER.get(name, ()), *overrides)
    return small_run(name, scenario, overrides=overrides, device=device, **options)


def places(device: PretendedCuda, value: Any, name: str = "") -> dict[str, str]:
    """Where each tensor of a state lies."""
    if isinstance(value, Tensor):
        return {name: device.place_of(value)}
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list | tuple) else items
    return {k: v for key, item in items for k, v in places(device, item, f"{name}.{key}").items()}


def stray(device: PretendedCuda, run: SmallRun) -> list[str]:
    """The tensors of a run's state that are not on the device."""
    found = places(device, checkpoint.state_of(run.made))
    return [k for k, place in found.items() if place != "cuda" and not k.endswith(ON_THE_CPU)]


def waits(events: Counter[tuple[str, str]]) -> dict[str, int]:
    return {what: number for (kind, what), number in events.items() if kind in WAITS}


def run_there(
    name: str,
    *overrides: str,
    waiting: bool = False,
    there: PretendedCuda | None = None,
    on: str = "cuda",
    **options: Any,
) -> int:
    """Compare a run on the device with that on the CPU; the number of kernels of its last steps.

    Of its last two whole steps, each waits or none does. The first step of a task may wait, where
    something is made for the task (HALRP's factors, eigenvectors of Kronecker factors).
    """
    plain = short_run(name, *overrides, device="cpu", **options)()
    with (
        there or PretendedCuda() as device,
        device.each_call(class_of(name), "observe") as steps,
    ):
        run = short_run(name, *overrides, device=on, **options)()
        assert not stray(device, run)
        assert run.theta.cpu().equal(plain.theta), name
    matrices = [made.progress.matrix.values.nan_to_num(-1) for made in (run, plain)]
    assert matrices[0].equal(matrices[1])
    assert device.count("mismatch", "nondeterministic") == 0
    assert_waits(steps[-3:-1], waiting)
    return sum(n for step in steps[-3:-1] for (kind, _), n in step.items() if kind == "kernel")


def assert_waits(steps: list[Counter[tuple[str, str]]], waiting: bool) -> None:
    assert len(steps) == 2
    found = [waits(step) for step in steps]
    assert all(bool(step) == waiting for step in found), found


REFUSED = [(name, "resnet") for name in PLAIN_ALONE]
PAIRS = [(name, net) for name in KINDS for net in ("mlp", "resnet")]


@pytest.mark.parametrize(("name", "net"), [p for p in PAIRS if p not in REFUSED])
def test_every_method(name: str, net: str) -> None:
    """Its state is on the device, no step waits for it, and each operation can be deterministic."""
    machine, waiting = {**PLAIN, "deterministic": True}, name in STEPS_THAT_WAIT
    few = name in ("gdumb", "ncm", "ranpac")  # whose steps learn nothing
    least = 5 if few else 40
    assert run_there(name, learner=NETWORKS[net], machine=machine, waiting=waiting) > least


OPTIONS = [
    ("er", ("buffer=balanced",), "mlp"),
    ("er", ("buffer=everything",), "mlp"),
    ("er", ("method.combine=sum",), "norm"),
    ("gem", ("buffer=reservoir",), "mlp"),
    ("agem", ("method.reference=tasks",), "mlp"),
    ("lamaml", ("method.order=second",), "mlp"),
    ("emcl", ("method.inner=gradient",), "norm"),
    ("hat", (), "strided"),
    ("l2p", (), "prompts"),
    ("ewc", (), "lora"),
    ("ranpac", (), "random features"),
    ("halrp", ("method.pruning=magnitude",), "mlp"),
    ("halrp", ("method.pruning=ranks",), "mlp"),
    ("halrp", ("method.importance=flat",), "mlp"),
    ("ewc", ("method.step=explicit", "method.every=3", "method.strength=0.1"), "norm"),
    ("ewc", ("curvature=kfac", "merging=apart"), "norm"),
    ("dlcft", ("method.memory=always",), "tangent"),
    ("finetune", (), "tangent"),
    ("ewc", (), "folded"),
]


@pytest.mark.parametrize(("name", "overrides", "net"), OPTIONS)
def test_options_of_methods(name: str, overrides: tuple[str, ...], net: str) -> None:
    waiting = bool({"buffer=balanced", "buffer=reservoir"} & {*overrides})  # by its docstring; GEM
    run_there(name, *overrides, learner=NETWORKS[net], waiting=waiting)


@pytest.mark.parametrize("curvature", names("curvature"))
def test_every_curvature(curvature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network with convolutions, batch norm and linear layers; eigenvectors as on a CPU."""
    monkeypatch.setattr(base, "LARGE", 10**9)
    chosen = [f"curvature={curvature}"]
    if curvature == "layer_hessian":
        run_there("halrp", *chosen, "method.importance=norm")
    else:
        run_there("ewc", *chosen, learner=batch_norm)


def test_large_matrices_are_decomposed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that passes the check, else in float64, as on a CPU."""
    made = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    matrix = made @ made.T
    precise = base.eigh(matrix)
    with PretendedCuda():
        there = matrix.to("cuda")
        quick = base.eigh(there)
        monkeypatch.setattr(base, "TOLERANCE", 0.0)
        checked = base.eigh(there)
    torch.testing.assert_close(quick[0].cpu(), precise[0], rtol=1e-4, atol=1e-3)
    assert not quick[1].cpu().equal(precise[1]) and checked[1].cpu().equal(precise[1])


@pytest.mark.parametrize("merging", names("merging"))
def test_every_merging(merging: str) -> None:
    run_there("ewc", "curvature=kfac", f"merging={merging}")


@pytest.mark.parametrize(
    "name", ["finetune", "er", "ewc", "dlcft", "emcl", "halrp", "apd", "hat", "gem"]
)
def test_a_run_comes_back_to_the_device(name: str, tmp_path: Path) -> None:
    """Stopped within the second task: each tensor lies where it lay before, and so do results."""
    net = residual if name in ("finetune", "er", "ewc") else perceptron
    whole = short_run(name, device="cpu", learner=net)()
    with PretendedCuda() as device, device.each_call(class_of(name), "observe") as steps:
        first = short_run(name, learner=net, folder=tmp_path, stop_at=10 if name == "halrp" else 6)
        with pytest.raises(StopRun):
            first()
        before = places(device, checkpoint.state_of(first.made))
        again = short_run(name, learner=net, folder=tmp_path)
        found: dict[str, str] = {}
        again.advanced = lambda stop: found.update(  # type: ignore[method-assign]
            {} if found else places(device, checkpoint.state_of(again.made))
        )
        again()
        assert not stray(device, again)
        assert_waits(steps[-3:-1], name in STEPS_THAT_WAIT)
        assert again.theta.cpu().equal(whole.theta)
    assert found == before


@pytest.mark.parametrize("name", ["finetune", "der", "lwf", "ewc"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_channels_last_and_bfloat16(name: str, precision: str) -> None:
    run_there(name, learner=residual, machine={"precision": precision, "channels_last": True})


@pytest.mark.parametrize("probe", [MaxEigenvalue(4, 16, 5), KNN(3, 16)])
def test_probes(probe: Any) -> None:
    run_there("finetune", probe=probe)


def test_a_warm_up() -> None:
    run_there("finetune", schedule=scheduled(epochs=1, warm_up="head"))


@pytest.mark.parametrize("name", ["er", "ewc", "gem", "halrp", "dlcft"])
def test_the_second_of_two_devices(name: str) -> None:
    """runtime.device=cuda:1: nothing is made on the first one, or where PyTorch's default is."""
    waiting = name in STEPS_THAT_WAIT
    run_there(name, there=PretendedCuda(devices=2), on="cuda:1", waiting=waiting)


MPS = [
    *(("er",), ("ewc", "curvature=kfac"), ("ewc", "curvature=ekfac"), ("gem",), ("dlcft",)),
    *(("halrp", "method.pruning=ranks"), ("halrp",), ("lwf",), ("lamaml",), ("emcl_replay",)),
    *(("ncm",), ("slda",), ("ranpac",), ("bic",), ("icarl",), ("gss",)),
]


@pytest.mark.parametrize("words", MPS, ids=" ".join)
def test_a_device_without_float64_and_page_locked_memory(words: tuple[str, ...]) -> None:
    """runtime.device=mps: its steps may wait, and sums in float64 are kept on the CPU."""
    name, *overrides = words
    plain = short_run(name, *overrides, device="cpu")()
    with PretendedCuda(kind="mps") as device:
        run = short_run(name, *overrides, device="mps")()
        sums = {f".method.{name}" for name in ("count", "sums", "products")}
        assert not {*stray(device, run)} - sums and device.count("mismatch") == 0
        assert json.dumps(run.rows) == json.dumps(plain.rows)  # in which nan equals nan
        assert run.theta.cpu().equal(plain.theta)


@pytest.mark.parametrize("name", ["ncm", "ranpac", "er", "ewc"])
def test_a_run_comes_back_to_a_device_without_float64(name: str, tmp_path: Path) -> None:
    plain = short_run(name, device="cpu")()
    with PretendedCuda(kind="mps"):
        with pytest.raises(StopRun):
            short_run(name, device="mps", folder=tmp_path, stop_at=6)()
        again = short_run(name, device="mps", folder=tmp_path)()
        assert again.theta.cpu().equal(plain.theta)
        assert json.dumps(again.rows[-1]) == json.dumps(plain.rows[-1])


@pytest.mark.parametrize("name", ["finetune", "der", "agem", "ewc", "lamaml", "emcl", "dlcft"])
def test_nothing_waits_between_steps(name: str) -> None:
    """A task of twice as many steps has more waits for one reason: the losses that are logged."""
    found = []
    for each in (44, 84):  # of which the last four are a batch by themselves
        run = short_run(name)
        with PretendedCuda() as device:
            stream = blobs(run.scenario, 3, each, device.device)
            run.arranged = partial(lambda made, _: made, stream)
            run()
        logged = sum(row["event"] == "step" for row in run.rows)
        found.append((device.count(*WAITS), logged))
    (few, one), (many, two) = found
    assert two > one and many - few == two - one


# the pretended device itself: faults of each kind


def test_two_devices_are_noticed() -> None:
    with PretendedCuda() as device:
        x = torch.ones(3, device="cuda")
        for wrong in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([x, torch.ones(3)]),
            lambda: x.index_select(0, torch.tensor([1])),
            lambda: torch.where(torch.ones(3) > 0, x, x),
            lambda: torch.ones(3).mul_(x),
            lambda: torch.zeros(()).add_(x.sum()),
            lambda: x.clamp(torch.tensor(0.0), torch.tensor(1.0)),
            lambda: torch.zeros_like(x, device="cpu") + x,
            lambda: torch.ones(3) + torch.as_tensor(torch.ones(3), device="cuda"),
        ):
            with pytest.raises(Mismatch, match="to be on the same device"):
                wrong()
        with pytest.raises(Mismatch, match="device type for generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            x.numpy()
        assert (x + torch.tensor(2.0) + 1).device.type == "cuda", "a number goes with the kernel"
        with pytest.raises(TypeError, match=r"must be a torch\.ByteTensor"):
            device.generator("cuda").set_state(torch.ones(4, dtype=torch.uint8, device="cuda"))
        assert device.count("mismatch") == 10


def test_waits_are_noticed() -> None:
    with PretendedCuda() as device:
        x = torch.ones(3, device="cuda")
        for number, waiting in enumerate(
            (
                lambda: x.sum().item(),
                lambda: bool(x.any()),
                lambda: x.tolist(),
                lambda: x.nonzero(),
                lambda: x[x > 0],
                lambda: torch.linalg.eigh(torch.eye(2, device="cuda")),
            )
        ):
            waiting()
            assert device.count("sync") > number, number
        for kind, copy in (
            ("h2d", lambda: torch.ones(2).to("cuda")),
            ("d2h", lambda: x.cpu()),
            ("h2d", lambda: x[[0, 1]]),
            ("h2d_async", lambda: torch.ones(2).pin_memory().to("cuda", non_blocking=True)),
        ):
            before = device.count(kind)
            copy()
            assert device.count(kind) == before + 1, kind
        before = device.count(*WAITS)
        x.masked_fill_(x > 0, 2.0)
        x.add_(x).relu().sum()
        assert device.count(*WAITS) == before


def test_what_has_no_deterministic_kernel_is_noticed() -> None:
    torch.use_deterministic_algorithms(True)
    with PretendedCuda(), pytest.raises(RuntimeError, match="not have a deterministic"):
        torch.ones(3, 3, device="cuda").median(0)


def test_gradients_and_per_sample_gradients_stay_on_the_device() -> None:
    with PretendedCuda() as device:
        net = mlp().to("cuda")
        x = torch.rand(5, 1, 4, 4, device="cuda")
        net(x).sum().backward()
        assert all(device.is_there(p.grad) for p in net.parameters() if p.grad is not None)
        rows = torch.func.vmap(torch.func.jacrev(lambda one: net(one[None])[0]))(x)
        assert device.is_there(rows)
        assert device.count(*WAITS) == len(list(net.parameters()))  # each was copied there
