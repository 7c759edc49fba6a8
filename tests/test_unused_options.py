"""An option that makes no difference changes neither a run's name nor its numbers; others do."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import composed, machine
from torch import Generator, Tensor

from cl_bench.config.build import build, make_method, make_network, make_stream
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.core.runtime import Runtime
from cl_bench.engine import experiment
from cl_bench.engine.session import Host, Progress, Session

SMALL = (
    *("dataset.tasks=3", "dataset.train_per_task=20", "evaluation.when=final", "tracking=none"),
    *("model.hidden=[6]", "schedule.epochs=1", "schedule.batch_size=8"),
)
CLASSES = (  # the bundled digits, cut by class
    *("dataset=seqmnist", "dataset.source._target_=cl_bench.data.source.mnist5k"),
    *("model.hidden=[6]", "evaluation.when=final", "tracking=none", "schedule.batch_size=512"),
)
DLCFT = ("method=dlcft", "model.pretrained=null")
HALRP = ("method=halrp", "schedule.epochs=2", "scenario=task", "method.growth=3.0")
EMCL = ("method=emcl", "optimizer.lr=0.5")
READINGS = ("experiment=emcl/readings", "dataset=pmnist5k", "optimizer.lr=0.5")
REPTILE = (*READINGS, "method.inner=plain")  # h is in alpha alone
IDLE: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    ((), ("scenario.split=class",)),
    ((), ("dataset.order=random",)),
    ((), ("evaluation.holdout=0.5",)),
    ((), ("schedule.decay=0.5",)),
    (("schedule.annealing=cosine",), ("schedule.decay=0.5",)),
    ((), ("schedule.batch_norm=frozen",)),
    ((), ("schedule.fresh_optimizer=false",)),  # plain SGD has no state
    (("method=joint", "optimizer=adam"), ("schedule.fresh_optimizer=false",)),
    (("method=der",), ("method.draws=1",)),
    ((), ("model.norm=folded",)),
    (("model.head_mode=head_only",), ("model.linearize=true",)),
    (("method=ewc", "curvature=diag_ggn"), ("curvature.probes=3",)),
    (("method=ewc", "curvature=diag_ggn"), ("curvature.negative=absolute",)),
    (("method=osla", "schedule.batch_norm=frozen"), ("curvature.batch_norm=frozen",)),
    (("method=er",), ("buffer.insert=first",)),
    (("method=er",), ("curvature=kfac", "merging=apart")),
    (("method=lwf",), ("buffer.capacity=7", "buffer.insert=first", "method.replay=3")),
    (("method=lwf", "method.source=buffer", "schedule.epochs=2"), ("buffer.insert=first",)),
    (DLCFT, ("buffer.capacity=5", "method.replay=3", "method.share=0.1")),
    ((*DLCFT, "method.memory=always", "schedule.epochs=2"), ("buffer.insert=first",)),
    (("method=agem", "method.reference=tasks"), ("method.replay=3",)),
    (("method=mer", "method.algorithm=6", "method.replay=2"), ("method.beta=0.5",)),
    (("method=mer", "method.batches=2"), ("method.batch_norm=batch",)),
    (("method=lamaml",), ("optimizer.lr=5.0",)),
    (("method=cmaml",), ("method.rate_lr=0.7", "method.batch_norm=whole")),
    (EMCL, ("method.batch_norm=batch",)),
    (EMCL, ("buffer.capacity=7", "method.replay_in=inner")),
    ((*READINGS, "method.rule=constant"), ("method.scale=7.0", "method.rates=new")),
    ((*EMCL, "method.importance=none"), ("method.decay=0.1",)),
    ((*READINGS, "method.importance=none"), ("method.at=mean", "method.start=zero")),
    (
        (*EMCL, "method.inner=modulated"),
        ("method.prox=9", "method.inner_lr=9", "method.strength=9"),
    ),
    (REPTILE, ("method.strength=9", "method.unit=one", "method.floor=0.5")),
    ((*REPTILE, "method.rule=constant"), ("method.decay=0.1", "method.start=zero")),
    ((*HALRP, "method.importance=flat"), ("method.share=0.2", "curvature=kfac")),
    ((*HALRP, "method.growth=null"), ("method.pruning=magnitude", "method.threshold=0.5")),
]
LOUD = [  # the same options where they count
    ((), ("dataset.heads=apart", "scenario=task")),
    (("dataset=rmnist",), ("dataset.order=random",)),
    (("evaluation.split=val",), ("evaluation.holdout=0.5",)),
    (("schedule.annealing=exponential",), ("schedule.decay=0.5",)),
    (("dataset=seqcifar100",), ("schedule.batch_norm=frozen",)),
    (("dataset=seqcifar100",), ("model.norm=folded",)),
    (("optimizer.momentum=0.9",), ("schedule.fresh_optimizer=false",)),
    (("method=derpp",), ("method.draws=1",)),
    (("method=ewc", "curvature=diag_hessian"), ("curvature.probes=3",)),
    (("method=er", "schedule.epochs=2"), ("buffer.insert=first",)),
    (("method=lwf", "method.source=buffer"), ("buffer.capacity=7",)),
    ((*DLCFT, "method.memory=always"), ("method.share=0.1",)),
    (EMCL, ("method.decay=0.1",)),
    (READINGS, ("method.unit=one",)),
]


@cache
def plainest() -> Runtime:
    return machine()


def fresh() -> Runtime:
    """The generators that a run of seed 0 starts with, on a machine that is set up once."""
    torch.manual_seed(0)
    names = ("order", "memory", "draws")
    return replace(plainest(), **{n: Generator().manual_seed(i) for i, n in enumerate(names)})


@cache
def numbers(*overrides: str) -> tuple[str, Tensor, Tensor]:
    """The name of a small run, what it predicts with at the end, and its accuracies."""
    cfg = composed(*overrides)
    normalise_floats(cfg, check_config(cfg))
    rt = fresh()
    stream = make_stream(cfg, rt.device)
    method = make_method(cfg, rt, stream)
    progress = Progress.start(stream)
    parts = build(cfg.schedule), build(cfg.evaluation), rt.order, progress, Host()
    experiment.run(Session(method, stream, *parts))
    theta = torch.cat([network.theta for _, network in method.networks()])
    return config_hash(cfg), theta, progress.matrix.values


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


@pytest.mark.parametrize(("base", "idle"), IDLE, ids=[" ".join(i) for _, i in IDLE])
def test_an_idle_option(base: tuple[str, ...], idle: tuple[str, ...], home: Path) -> None:
    given = (f"data_dir={home}", *SMALL, *base)
    name, theta, matrix = numbers(*given)
    other, moved, found = numbers(*given, *idle)
    assert other == name and theta.equal(moved)
    assert matrix.nan_to_num(-1).equal(found.nan_to_num(-1))


@pytest.mark.parametrize("idle", ["dataset.heads=shared", "dataset.seed=7"])
def test_a_seed_that_nothing_is_drawn_by(idle: str, home: Path) -> None:
    given = (f"data_dir={home}", *CLASSES)
    name, theta, _ = numbers(*given)
    other, moved, _ = numbers(*given, idle)
    assert other == name and theta.equal(moved)
    for drawn in ("dataset.order=random", "dataset.train_per_task=9", "evaluation.split=val"):
        names = {config_hash(composed(*given, drawn, f"dataset.seed={s}")) for s in (0, 1)}
        assert len(names) == 2, drawn


def test_initial_values_that_a_backbone_replaces() -> None:
    model = ("model=reduced_resnet18", "model.pretrained=reduced_resnet18_cifar10")
    model = (*model, "model.activation=leaky_relu", "model.head_init=zero", "dataset=seqcifar100")
    nets = []
    for init in ("torch", "kaiming"):
        torch.manual_seed(0)
        cfg = composed(*model, f"model.init={init}")
        nets.append((config_hash(cfg), make_network(cfg.model, (3, 32, 32), 4).state_dict()))
    (name, one), (other, two) = nets
    assert name == other and all(value.equal(two[key]) for key, value in one.items())
    same = (*model, "model.head_init=same")
    assert config_hash(composed(*same)) != config_hash(composed(*same, "model.init=kaiming"))


@pytest.mark.parametrize(("base", "loud"), LOUD, ids=[" ".join(i) for _, i in LOUD])
def test_where_it_counts_it_names_another_run(base: tuple[str, ...], loud: tuple[str, ...]) -> None:
    assert config_hash(composed(*base)) != config_hash(composed(*base, *loud))


def test_the_ggns_diagonal_is_the_exact_fishers(home: Path) -> None:
    given = (f"data_dir={home}", *SMALL, "method=ewc")
    _, ggn, _ = numbers(*given, "curvature=diag_ggn")
    _, exact, _ = numbers(*given, "curvature=diag_fisher_exact")
    assert ggn.equal(exact)
