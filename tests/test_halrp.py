"""HALRP against its equations (Li et al. 2024): algebra, allocation, account, the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, composed, identity, learner, method_for, mlp
from scipy.linalg import hadamard
from torch import Generator, Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.config.build import build
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.core.flat import FlatParams
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Stream, Task
from cl_bench.curvature.dense import Dense
from cl_bench.curvature.layer_hessian import LayerProducts
from cl_bench.engine.evaluation import accuracies
from cl_bench.methods.shared.capacity import Account, HALRPTask
from cl_bench.methods.shared.low_rank import (
    Layout,
    by_budget,
    by_share,
    decompose,
    equal_ranks,
    layers_of,
    scores,
    topk_mask,
)
from cl_bench.models.convnet import ConvNet
from cl_bench.results.record import sha256_of

PLAIN = ("method.growth=null", "method.l1=0.0", "method.l2=0.0")
SMALL: dict[str, Any] = {
    "channels": [4, 6],
    "kernels": [5, 3],
    "padding": 2,
    "hidden": [10],
    "dropout": [],
    "activation": "relu",
    "init": "torch",
    "head_init": "same",
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def fresh(**changes: Any) -> Learner:
    """A perceptron under Adam, always the same one."""
    torch.manual_seed(2)
    return learner(mlp(**changes), optimizer=adam())


def seeded() -> Generator:
    return Generator().manual_seed(0)


def convnet(classes: int = 6, **changes: Any) -> ConvNet:
    torch.manual_seed(3)
    return ConvNet((3, 8, 8), classes, **{**SMALL, **changes})


def layout_of(net: nn.Module, flat: FlatParams, rank: int) -> Layout:
    pairs = list(layers_of(flat, net.head))
    names, shapes = tuple(n for n, _ in pairs), tuple(s for _, s in pairs)
    own = torch.tensor([flat.slices[n].start for n in flat.slices if n not in names])
    return Layout(names, shapes, (rank,) * len(names), own)


def learned(
    made: Learner, stream: Stream, name: str, *overrides: str, epochs: int = 4
) -> tuple[Any, list[list[float]]]:
    """The method after the stream, batches of ten, and its accuracies after each task."""
    torch.manual_seed(1)
    method, rows = method_for(name, made, *overrides), []
    for task in stream.tasks:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        made.task = task
        made.train(False)
        method.begin_task(task)
        for batch in task.batches(10, seeded(), epochs):
            method.observe(batch)
        method.end_task(task)
        rows.append(accuracies(method, stream.tests[: task.id + 1], 7))
    return method, rows


def adam(lr: float = 0.01) -> Any:
    return lambda params: torch.optim.Adam(params, lr=lr)


# the algebra


@pytest.mark.parametrize("stride, padding, kernel", [(1, 0, 1), (1, 1, 3), (2, 1, 3), (1, 2, 5)])
def test_a_convolution_in_factors_is_the_one_with_the_assembled_weight(
    stride: int, padding: int, kernel: int
) -> None:
    """R scales outputs, S inputs; U V x is a sum over the kernel's window, then two 1x1 layers."""
    net = nn.Sequential(nn.Conv2d(3, 5, kernel, stride, padding).double())
    net.head = nn.Identity()  # type: ignore[assignment]
    flat = FlatParams(net, False)
    layout = layout_of(net, flat, 2)
    phi, x = normal(layout.size), normal(2, 3, 9, 9, seed=1)
    ((r, s, u, v),), _ = layout.split(phi)
    base, theta = flat.theta.detach().clone(), flat.theta.detach().clone()
    w0 = flat.views(base)["0.weight"]
    scaled = F.conv2d(x * s.view(-1, 1, 1), w0, None, stride, padding) * r.view(-1, 1, 1)
    area = kernel * kernel
    boxed = F.avg_pool2d(x, kernel, stride, padding, count_include_pad=True) * area
    low = torch.einsum("or,ri,bihw->bohw", u, v, boxed)
    layout.assemble(flat, base, phi, theta)
    dense = F.conv2d(x, flat.views(theta)["0.weight"], None, stride, padding)
    torch.testing.assert_close(dense, scaled + low, rtol=1e-12, atol=1e-12)


def test_a_linear_layer_in_factors_is_the_one_with_the_assembled_weight() -> None:
    net = nn.Sequential(nn.Linear(7, 4).double())
    net.head = nn.Identity()  # type: ignore[assignment]
    flat = FlatParams(net, False)
    layout = layout_of(net, flat, 3)
    phi, x = normal(layout.size), normal(5, 7, seed=1)
    ((r, s, u, v),), _ = layout.split(phi)
    base, theta = flat.theta.detach().clone(), flat.theta.detach().clone()
    layout.assemble(flat, base, phi, theta)
    dense = x @ flat.views(theta)["0.weight"].T
    factored = r * ((x * s) @ flat.views(base)["0.weight"].T) + (x @ v.T) @ u.T
    torch.testing.assert_close(dense, factored, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gradient_of_phi_is_autograds(channels_last: bool) -> None:
    net = convnet().double()
    flat = FlatParams(net, channels_last)
    layout = layout_of(net, flat, 2)
    base, target = flat.theta.detach().clone(), normal(flat.theta.numel(), seed=5)
    phi = normal(layout.size).requires_grad_()
    old, aim = flat.views(base), flat.views(target)
    layers, own = layout.split(phi)
    value = (own * target[layout.own]).sum()
    for name, (r, s, u, v) in zip(layout.weights, layers, strict=True):
        spread = (*layout.shapes[layout.weights.index(name)], *[1] * (old[name].dim() - 2))
        weight = torch.outer(r, s).view(spread) * old[name] + (u @ v).view(spread)
        value = value + (weight * aim[name]).sum()
    value.backward()
    found = torch.zeros_like(phi)
    layout.pull(flat, base, phi.detach(), target, found)
    torch.testing.assert_close(found, phi.grad, rtol=1e-11, atol=1e-11)


def test_the_identity_is_the_base() -> None:
    net = convnet().double()
    flat = FlatParams(net, False)
    layout = layout_of(net, flat, 2)
    base, theta = flat.theta.detach().clone(), torch.zeros_like(flat.theta)
    phi = torch.zeros(layout.size, dtype=torch.float64)
    phi[: layout.scales] = 1
    layout.split(phi)[1].copy_(base[layout.own])
    layout.assemble(flat, base, phi, theta)
    for name in layout.weights:
        assert flat.views(theta)[name].equal(flat.views(base)[name])


# from a warm weight to factors


def test_scalings_are_a_least_squares_fit() -> None:
    w0, w = normal(6, 4), normal(6, 4, seed=1)
    first = decompose(w0, w, 1)
    rows = (w0 * (w - first.r[:, None] * w0)).sum(1)  # R was fitted with S = 1
    torch.testing.assert_close(rows, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    scaled = first.r[:, None] * w0
    columns = (scaled * (w - scaled * first.s)).sum(0)
    torch.testing.assert_close(columns, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    left = [float(decompose(w0, w, n).sigma.square().sum()) for n in (1, 2, 10)]
    assert left[0] >= left[1] >= left[2]


def test_a_scaled_base_leaves_nothing_over() -> None:
    w0, r, s = normal(6, 4, 3, 3), normal(6, seed=1), normal(4, seed=2)
    parts = decompose(w0, w0 * torch.outer(r, s)[..., None, None], 200)
    assert float(parts.sigma.max()) < 1e-6


def test_full_rank_is_the_warm_weight() -> None:
    w0, w = normal(6, 4), normal(6, 4, seed=1)
    r, s, u, v = decompose(w0, w, 1).factors(4)
    torch.testing.assert_close(r[:, None] * w0 * s + u @ v, w, rtol=1e-12, atol=1e-12)


def test_a_rank_is_the_nearest_matrix_of_that_rank() -> None:
    w0, w = normal(6, 4), normal(6, 4, seed=1)
    parts = decompose(w0, w, 1)
    r, s, u, v = parts.factors(2)
    left = (w - r[:, None] * w0 * s - u @ v).square().sum()
    torch.testing.assert_close(left, parts.sigma[2:].square().sum())


def test_a_convolutions_residual_is_its_mean_over_the_kernel() -> None:
    w0, w = normal(6, 4, 3, 3), normal(6, 4, 3, 3, seed=1)
    parts = decompose(w0, w, 1)
    r, s, u, v = parts.factors(4)
    residual = (w - torch.outer(r, s)[..., None, None] * w0).mean((2, 3))
    torch.testing.assert_close(u @ v, residual)
    (found,) = scores([parts], torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(found.sum(), 0.5 * 9 * residual.square().sum())


# the allocation


def test_scores_add_up_to_importance_times_the_residual() -> None:
    parts = [
        decompose(normal(6, 4), normal(6, 4, seed=1), 1),
        decompose(normal(3, 5), normal(3, 5, seed=1), 1),
    ]
    found = scores(parts, torch.tensor([2.0, 0.5], dtype=torch.float64))
    for part, values, weight in zip(parts, found, (2.0, 0.5), strict=True):
        residual = (part.left * part.sigma) @ part.right
        torch.testing.assert_close(values.sum(), weight * residual.square().sum())


def test_ranks_by_share_are_the_fewest_that_hold_it() -> None:
    found = [torch.tensor([5.0, 1.0]), torch.tensor([3.0, 1.0])]
    assert by_share(found, 0.5) == [1, 0]
    assert by_share(found, 0.51) == [1, 1]
    assert by_share(found, 0.8) == [1, 1]
    assert by_share(found, 0.85) == [2, 1]
    assert by_share(found, 1.0) == [2, 2]
    assert by_share([torch.zeros(2), torch.zeros(3)], 0.9) == [0, 0]


def test_ranks_grow_with_the_share() -> None:
    found = [normal(9, seed=i).square().sort(descending=True).values for i in range(4)]
    before = [0] * 4
    for share in torch.linspace(0.05, 1, 20).tolist():
        ranks = by_share(found, share)
        assert all(a <= b for a, b in zip(before, ranks, strict=True))
        before = ranks


def test_ranks_by_budget() -> None:
    """The directions worth most for what they cost: 5/10 and 1/10, 3/1 and 2/1."""
    found = [torch.tensor([5.0, 1.0]), torch.tensor([3.0, 2.0])]
    assert by_budget(found, [10, 1], 1) == [0, 1]
    assert by_budget(found, [10, 1], 11) == [0, 2]
    assert by_budget(found, [10, 1], 12) == [1, 2]
    assert by_budget(found, [10, 1], 100) == [2, 2]
    assert equal_ranks([5, 2], [10, 1], 32) == [3, 2]
    assert equal_ranks([5, 2], [10, 1], 5) == [0, 0]


def test_the_largest_entries_stay() -> None:
    values = torch.tensor([3.0, -4.0, 0.5, 0.0])
    assert topk_mask(values.abs(), 2).tolist() == [True, True, False, False]
    assert not topk_mask(values.abs(), 0).any() and topk_mask(values.abs(), 9).all()


def curvature_of(name: str, made: Learner, task: Task, *overrides: str) -> Any:
    return build(composed(f"curvature={name}", *overrides).curvature)(made, task)


EXACT = ["identity", "diag_fisher", "diag_batched", "kfac", "tkfac", "ekfac"]


def block(found: Any, flat: FlatParams, weight: str) -> Tensor:
    """A weight's own block of a curvature, column by column."""
    span = flat.slices[weight]
    eye = torch.eye(flat.grad.numel(), dtype=torch.float64)[span]
    return torch.stack([found.matvec(row) for row in eye])[:, span]


def block_sizes(found: Any, made: Learner, names: list[str], size: str) -> Tensor:
    """The trace or the norm of each weight's own block."""
    of = found.block_trace if size == "trace" else found.block_norm
    return torch.stack([of(made.flat.slices[name]) for name in names])


@pytest.mark.parametrize("name", [*EXACT, "full", "full_hessian"])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_layers_trace_and_norm_are_its_blocks(name: str, kind: str) -> None:
    made, task = _small(kind)
    found = curvature_of(name, made, task)
    names = [n for n, _ in layers_of(made.flat, made.net.head)]
    blocks = [block(found, made.flat, weight) for weight in names]
    traces, norms = (block_sizes(found, made, names, size) for size in ("trace", "norm"))
    torch.testing.assert_close(traces, torch.stack([b.trace() for b in blocks]))
    torch.testing.assert_close(norms, torch.stack([b.norm() for b in blocks]))


def _small(kind: str) -> tuple[Learner, Task]:
    """Float64, at no minimum: its Hessian has eigenvalues of both signs."""
    task = blobs("task").tasks[0]
    if kind == "dense":
        return learner(mlp(hidden=[5, 4], activation="tanh").double()), task
    wide = _coloured(blobs("task")).tasks[0]
    few = Task(0, wide.x[:6], wide.y[:6], wide.t[:6])
    made = convnet(channels=[2, 3], hidden=[4]).double()
    return learner(made, transform=identity(channels=3)), few


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_layer_hessian_is_the_hessian_by_products(kind: str) -> None:
    """Its products are the raw Hessian's; its sizes those of the blocks, with exact probes.

    The rows of a Hadamard matrix are signs with a mean of v v' that is the identity, as it is in
    expectation for the random ones.
    """
    made, task = _small(kind)
    found = curvature_of("layer_hessian", made, task, "curvature.probes=3")
    whole = curvature_of("full_hessian", made, task, "curvature.negative=raw")
    assert float(torch.linalg.eigvalsh(whole.matrix).min()) < -1e-4
    assert found.signs.shape == (3, made.flat.grad.numel()) and found.signs.abs().eq(1).all()
    assert not found.signs[0].equal(found.signs[1]) and found.signs.mean().abs() < 0.5
    for v in found.signs:
        torch.testing.assert_close(found.product(v), whole.matvec(v))
    names = [n for n, _ in layers_of(made.flat, made.net.head)]
    for weight, norm in zip(names, block_sizes(found, made, names, "norm"), strict=True):
        span = made.flat.slices[weight]
        seen = (whole.matrix[span, span] @ found.signs[:, span].T).square().sum(0)
        torch.testing.assert_close(norm, seen.mean().sqrt())
    if kind == "dense":
        size = 1 << made.flat.grad.numel().bit_length()
        signs = torch.from_numpy(hadamard(size)).double()[:, : made.flat.grad.numel()]
        exact = LayerProducts(found.product, signs)
        for kind_of_size in ("trace", "norm"):
            wanted = block_sizes(whole, made, names, kind_of_size)
            torch.testing.assert_close(block_sizes(exact, made, names, kind_of_size), wanted)


def test_the_layer_hessian_makes_no_penalty() -> None:
    with pytest.raises(UserError, match="curvature=layer_hessian: it tells the layers' sizes"):
        check_config(composed("method=ewc", "curvature=layer_hessian", "dataset=pmnist5k"))
    small = ["model.hidden=[4]", "dataset=pmnist5k", "dataset.tasks=2"]
    dense = [*small, "curvature=full_hessian", "curvature.negative=raw"]
    for more in (["curvature=layer_hessian"], dense):
        check_config(composed("method=halrp", *more, "method.importance=norm"))
        with pytest.raises(UserError, match="a Hessian's trace may be negative"):
            check_config(composed("method=halrp", *more))
    ggn = ("curvature=diag_hessian", "curvature.estimate=ggn", "curvature.negative=raw")
    check_config(composed("method=halrp", *ggn))  # positive semi-definite


def test_the_authors_scalar_is_the_mean_square_of_the_batches_gradients() -> None:
    """A batch counts by its size: of 20 images there are 8, 8 and 4."""
    made, task = learner(mlp().double()), blobs("data").tasks[0]
    task = Task(0, task.x[:20], task.y[:20], task.t[:20])
    names = [n for n, _ in layers_of(made.flat, made.net.head)]
    method = method_for("halrp", made, "curvature.batch_size=8")
    total = [torch.zeros((), dtype=torch.float64) for _ in names]
    for part in task.chunks(8):
        theta = made.flat.theta.detach().clone().requires_grad_()
        grad = torch.autograd.grad(made.loss(theta, part), theta)[0]
        for i, name in enumerate(names):
            total[i] += made.flat.views(grad)[name].square().mean() * len(part.y)
    found = method._importances(tuple(names), task)
    torch.testing.assert_close(found, torch.stack(total) / 20)


@pytest.mark.parametrize("kind", ["mean", "trace", "norm", "none", "flat"])
def test_what_a_layer_is_worth(kind: str) -> None:
    """By the Fisher's diagonal at the weights that the warm-up has left."""
    made, task = _small("dense")
    made.reveal(blobs("task").live(0), torch.tensor([0]), None)
    names = tuple(n for n, _ in layers_of(made.flat, made.net.head))
    method = method_for("halrp", made, f"method.importance={kind}", "curvature=diag_fisher_exact")
    made.flat.theta.data.mul_(1.5)
    values = curvature_of("diag_fisher_exact", made, task).values
    parts = [values[made.flat.slices[name]] for name in names]
    worth = {"mean": Tensor.mean, "trace": Tensor.sum, "norm": Tensor.norm}.get(kind)
    wanted = [torch.ones((), dtype=torch.float64) if worth is None else worth(p) for p in parts]
    torch.testing.assert_close(method._importances(names, task), torch.stack(wanted))


def test_idle_options_do_not_rename_a_run() -> None:
    def name(*overrides: str) -> str:
        return config_hash(composed("method=halrp", "dataset=cifar100_split", *overrides))

    flat = "method.importance=flat"
    assert name(flat) == name(flat, "curvature=kfac") == name(flat, "method.share=0.5")
    none = "method.importance=none"
    assert name(none) == name(none, "curvature=kfac") != name(none, "method.share=0.5")
    free = "method.growth=null"
    assert name(free) == name(free, "method.threshold=0.1") != name(free, "curvature=kfac")
    assert name(free) == name(free, "method.pruning=ranks") != name(free, "method.share=0.5")
    ranks = "method.pruning=ranks"
    assert name(ranks) == name(ranks, "method.threshold=0.1", "method.share=0.5") != name()
    assert name() != name("method.threshold=0.1")


# Theorem 1


def test_the_bound_holds_on_a_quadratic() -> None:
    """L = 1/2 sum_l e_l' H_l e_l at its minimum: |L| <= 1/2 sum |H_l|_F |e_l|^2."""
    for seed in range(20):
        change, bound = 0.0, 0.0
        for layer in range(3):
            root, w = normal(12, 12, seed=100 * seed + layer), normal(4, 3, seed=seed + layer)
            block, parts = root @ root.T, decompose(torch.zeros(4, 3).double(), w, 1)
            _, _, u, v = parts.factors(1)
            e = (w - u @ v).flatten()
            change += float(e @ block @ e) / 2
            bound += float(block.norm() * parts.sigma[1:].square().sum()) / 2
        assert change <= bound


def test_the_bound_holds_on_a_trained_network() -> None:
    """At a minimum, positive definite, for residuals so small that third order does not count."""
    torch.manual_seed(0)
    made = learner(mlp(hidden=[5, 4], activation="tanh").double(), weight_decay=0.0)
    task = blobs("data").tasks[0]
    theta, whole = made.flat.theta, Batch(task.x, task.y, task.t)
    solver = torch.optim.LBFGS(
        [theta],
        max_iter=2000,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        made.flat.grad.zero_()
        value = made.loss(theta, whole) + 0.01 * theta.square().sum()
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    at = float(loss().detach())
    assert float(made.flat.grad.norm()) < 1e-5
    matrix: Any = torch.autograd.functional.hessian(
        lambda p: made.loss(p, whole) + 0.01 * p.square().sum(), theta.detach()
    )
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0
    names = [name for name, _ in layers_of(made.flat, made.net.head)]
    norms = block_sizes(Dense(matrix), made, names, "norm")

    def rise(moved: Tensor) -> float:
        return float(made.loss(moved, whole) + 0.01 * moved.square().sum()) - at

    for norm, name in zip(norms, names, strict=True):  # a layer at a time, as in the theorem
        span, shape = made.flat.slices[name], made.flat.shapes[name]
        base = theta.detach()[span].view(shape) + 0.02 * normal(*shape, seed=3)
        warm = theta.detach()[span].view(shape)
        parts = decompose(base, warm, 1)
        for rank in range(4):
            r, s, u, v = parts.factors(rank)
            moved = theta.detach().clone()
            moved[span] = (r[:, None] * base * s + u @ v).flatten()
            bound = float(norm * parts.sigma[rank:].square().sum()) / 2
            assert 0 < rise(moved) <= bound


# the method


def test_nothing_is_forgotten_and_the_base_stays_without_pruning() -> None:
    """Each task's network after the last task is bit for bit what it was after its own."""
    stream = blobs("task")
    made = fresh()
    method, rows = learned(made, stream, "halrp", *PLAIN)
    assert [row[j] for j, row in enumerate(rows)] == rows[-1]
    for count in (2, 3):
        tasks = {"tasks": stream.tasks[:count]}
        before, _ = learned(fresh(), Stream(**{**vars(stream), **tasks}), "halrp", *PLAIN)
        for task in range(count):
            assert method.network(task).theta.equal(before.network(task).theta)
    first, _ = learned(
        fresh(),
        Stream(**{**vars(stream), "tasks": stream.tasks[:1]}),
        "halrp",
        *PLAIN,
    )
    assert method.base.theta.equal(first.base.theta)
    start = dict(first.base.buffers)
    assert all(value.equal(start[name]) for name, value in method.base.buffers.items())
    assert made.flat.theta.equal(method.base.theta)


@pytest.mark.parametrize("name", ["halrp", "independent"])
def test_its_weights_are_those_of_all_tasks(name: str) -> None:
    """A record's hash is of them: theta is the base again after each task."""
    stream, hashes = blobs("task"), []
    for epochs in (4, 5, 5):
        made = fresh()
        method, _ = learned(made, stream, name, *(PLAIN if name == "halrp" else ()), epochs=epochs)
        nets = [network.theta for _, network in method.networks()]
        assert len(nets) == 3 and all(n.equal(method.network(t).theta) for t, n in enumerate(nets))
        hashes.append(sha256_of(nets))
    assert hashes[0] != hashes[1] == hashes[2]


def test_batch_norm_is_the_tasks_own() -> None:
    """Statistics and weights: each task predicts with those that it was trained with."""
    stream = _coloured(blobs("task"))
    made = learner(convnet(), optimizer=adam(), transform=identity(channels=3))
    method, rows = learned(made, stream, "halrp", *PLAIN)
    assert [row[j] for j, row in enumerate(rows)] == rows[-1]
    means = [method.network(t).buffers["features.1.running_mean"] for t in range(3)]
    assert not means[0].equal(means[1]) and not means[1].equal(means[2])


def _coloured(stream: Stream) -> Stream:
    """Blobs in 3 x 8 x 8."""

    def wide(task: Task) -> Task:
        x = task.x.expand(-1, 3, -1, -1).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return Task(task.id, x.contiguous(), task.y, task.t)

    parts = {"tasks": [wide(t) for t in stream.tasks], "tests": [wide(t) for t in stream.tests]}
    return Stream(**{**vars(stream), **parts, "transform": identity(channels=3)})


def test_at_full_rank_the_factors_take_over_where_the_free_weights_were() -> None:
    stream = blobs("task")
    made = fresh()
    method = method_for("halrp", made, *PLAIN, "method.share=1.0", "method.cap=999")
    for task in stream.tasks[:2]:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        made.task = task
        method.begin_task(task)
        for batch in task.batches(10, seeded(), 1):
            method.observe(batch)
        if task.id:
            warm = made.flat.theta.detach().clone()
            method._perturb(method.base, task)
            torch.testing.assert_close(made.flat.theta.detach(), warm, rtol=1e-5, atol=1e-6)
        method.end_task(task)


def test_a_step_of_phi_is_a_step_on_the_loss_with_its_penalties() -> None:
    """By autograd through the assembled network, with SGD."""
    stream, made = blobs("task"), learner(mlp().double())
    method = method_for("halrp", made, "method.growth=null", "method.l1=0.01", "method.l2=0.02")
    learned_first = stream.tasks[0]
    for task in stream.tasks[:2]:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        made.task = task
        method.begin_task(task)
        if task is learned_first:
            for batch in task.batches(10, seeded(), 1):
                method.observe(batch)
            method.end_task(task)
    batch = next(stream.tasks[1].batches(10, seeded()))
    made.flat.theta.data.add_(normal(made.flat.theta.numel(), seed=4), alpha=0.1)
    method._perturb(method.base, stream.tasks[1])
    layout, base = method.progress.layout, method.base.theta
    phi = made.optimized.detach().clone().requires_grad_()
    theta = base.clone().index_copy(0, layout.own, layout.split(phi)[1])
    for name, (r, s, u, v) in zip(layout.weights, layout.split(phi)[0], strict=True):
        span = made.flat.slices[name]
        weight = torch.outer(r, s) * made.flat.views(base)[name] + u @ v
        theta = torch.cat([theta[: span.start], weight.flatten(), theta[span.stop :]])
    low = phi[layout.scales : layout.scales + layout.factors]
    penalty = 0.01 * ((phi[: layout.scales] - 1).square().sum() + low.square().sum())
    (made.loss(theta, batch) + penalty + 0.01 * low.abs().sum()).backward()
    method.observe(batch)
    assert phi.grad is not None
    torch.testing.assert_close(made.optimized.detach(), phi.detach() - 0.1 * phi.grad)


def test_growth_is_counted_by_hand() -> None:
    """16-16-6: base 16 x 16 + 16 + 2 rows of the head x 17; a task adds R 16, S 16, own 16 + 34."""
    off = ("method.growth=null", "method.share=1.0")
    method, _ = learned(fresh(), blobs("task"), "halrp", *off)
    single, own, low = 16 * 16 + 16 + 2 * 17, 16 + 2 * 17, 16 * (16 + 16)
    alive = sum(int(task.low.count_nonzero()) for task in method.learned.values())
    assert alive == 2 * low
    facts = method.capacity()
    assert facts["capacity"] == single + 2 * (32 + own + low)
    assert facts["growth"] == 2 * (32 + own + low) / single
    assert facts["capacity_reference"] == single + 2 * (32 + own - 16 + low)


def test_growth_with_batch_norm_and_convolutions_is_counted_by_hand() -> None:
    """4 and 6 maps, 10 units, 2 classes of 6, one task after the base, rank 1 everywhere."""
    stream = _coloured(blobs("task"))
    made = learner(convnet(), optimizer=adam(), transform=identity(channels=3))
    few = Stream(**{**vars(stream), "tasks": stream.tasks[:2]})
    flat_rank = ("method.importance=flat", "method.cap=1")
    method, _ = learned(made, few, "halrp", "method.growth=null", *flat_rank)
    weights, norm, head = 3 * 4 * 25 + 4 * 6 * 9 + 54 * 10, 2 * (4 + 6 + 10), 2 * 11
    biases, statistics = 4 + 6 + 10, 2 * (4 + 6 + 10)
    single = weights + norm + head + biases
    scales = 4 + 3 + 6 + 4 + 10 + 54
    facts = method.capacity()
    assert list(method.learned[1].layout.ranks) == [1, 1, 1]
    added = 2 * scales + norm + head + biases
    assert facts["capacity"] == single + statistics + added + statistics
    assert facts["capacity_reference"] == single + added - biases


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("pruning", ["loss", "magnitude"])
def test_pruning_keeps_what_five_tasks_are_allowed_and_does_not_add_up(
    pruning: str, compat: bool
) -> None:
    """By magnitude each task has the same share of its factors; by loss they have it together."""
    stream = blobs("task", tasks=6)
    torch.manual_seed(2)
    made = learner(mlp(classes=12), optimizer=adam())
    allowed = ("method.growth=1.5", "method.share=1.0", "method.cap=16", "method.threshold=0.0")
    if compat:  # a share of 1 is a rank of 1 there
        allowed = (*allowed, "method.reference_compat=true", "method.share=0.999")
    method, _ = learned(made, stream, "halrp", *allowed, f"method.pruning={pruning}")
    single, own = 16 * 16 + 16 + 2 * 17, 16 + 2 * 17
    whole = sum(len(task.low) for task in method.learned.values())
    fixed = 5 * (32 + own)
    share = (1.5 * single - fixed) / whole
    if compat:
        share = 1.5 * single / (fixed - 5 * 16 + whole)
    assert 0 < share < 0.5
    if pruning == "loss":
        assert sum(task.alive for task in method.learned.values()) == int(share * whole)
        assert len({task.alive for task in method.learned.values()}) > 1
    else:
        for task in method.learned.values():
            assert task.alive == int(share * len(task.low))
    assert compat or 1.45 < method.capacity()["growth"] <= 1.5


@pytest.mark.parametrize("importance", ["mean", "flat"])
def test_ranks_that_growth_has_room_for_forget_nothing(importance: str) -> None:
    """As many as an equal part pays for, to less than the dearest direction (32 numbers) a task."""
    stream = blobs("task", tasks=6)
    torch.manual_seed(2)
    made = learner(mlp(classes=12), optimizer=adam())
    wanted = ("method.growth=2.0", "method.pruning=ranks", f"method.importance={importance}")
    method, rows = learned(made, stream, "halrp", *wanted)
    single, own = 16 * 16 + 16 + 2 * 17, 16 + 2 * 17
    room = int((2 * single - 5 * (32 + own)) / 5)
    for task in method.learned.values():
        assert room - 32 < task.layout.factors <= room
    assert method.capacity()["growth"] <= 2
    assert all(row[j] == rows[j][j] for row in rows for j in range(len(row)))


@pytest.mark.parametrize("growth, left", [(9.0, 4), (0.0, 0)])
def test_what_is_no_larger_than_the_threshold_is_cut_where_there_is_something_to_cut(
    growth: float, left: int
) -> None:
    """Not while all tasks fit: the authors do nothing then."""
    made = fresh()
    account = Account(made, growth, "magnitude", 0.5, compat=False)
    account.single = 8
    low = torch.tensor([0.4, 0.5, -0.6, 0.7])
    layout = Layout((), ((1, 1),), (2,), torch.zeros(0, dtype=torch.long))
    task = HALRPTask(layout, torch.cat([torch.ones(2), low]), {}, torch.ones(1))
    account.prune([task])
    assert task.alive == left
    account.growth = (2 + 3) / 8  # three may stay, one of them is not above the threshold
    task.low.copy_(low)
    account.prune([task])
    assert task.low.tolist() == pytest.approx([0, 0, -0.6, 0.7])


def test_an_entry_is_cut_by_what_it_costs() -> None:
    """Worth x the weight's squared change, entry by entry; a layer of little worth goes first."""
    shapes, worth = ((4, 3), (5, 4)), torch.tensor([2.0, 0.25], dtype=torch.float64)
    layout = Layout(("a", "b"), shapes, (2, 3), torch.zeros(0, dtype=torch.long))
    task = HALRPTask(layout, normal(layout.size), {}, worth)
    layers, _ = layout.split(task.phi)
    low, wanted = task.low, []
    whole = [layer.u @ layer.v for layer in layers]
    for i in range(len(low)):
        kept, low[i] = low[i].clone(), 0.0
        changes = [
            (w - layer.u @ layer.v).square().sum() for w, layer in zip(whole, layers, strict=True)
        ]
        wanted.append(worth @ torch.stack(changes))
        low[i] = kept
    torch.testing.assert_close(task.losses(), torch.stack(wanted))
    task.worth[1] = 0.0
    account = Account(fresh(), 2.0, "loss", 0.0, compat=False)
    account.single = 20  # 16 scalings and 24 of the 41 entries: of the second layer some at random
    account.prune([task])
    assert (layers[0].u != 0).all() and (layers[0].v != 0).all() and task.alive == 24


def test_the_bases_weights_decay_and_nothing_else_of_it_does() -> None:
    stream, made = blobs("task"), learner(mlp().double())
    method = method_for("halrp", made, "method.growth=null", "method.l2=0.3")
    task = stream.tasks[0]
    made.begin_task(stream.live(0), task.t.unique(), stream.live_at_end)
    made.task = task
    method.begin_task(task)
    batch, theta = next(task.batches(10, seeded())), made.flat.theta.detach().clone()
    theta.requires_grad_()
    weights = [theta[made.flat.slices[n]] for n, _ in layers_of(made.flat, made.net.head)]
    (made.loss(theta, batch) + 0.15 * torch.cat(weights).square().sum()).backward()
    method.observe(batch)
    assert theta.grad is not None
    torch.testing.assert_close(made.flat.theta.detach(), theta.detach() - 0.1 * theta.grad)


def test_growth_that_cannot_be_reached_is_refused_before_the_first_step() -> None:
    stream, made = blobs("task"), learner(mlp())
    method = method_for("halrp", made, "method.growth=0.2")
    made.begin_task(stream.live(0), torch.tensor([0]), stream.live_at_end)
    with pytest.raises(
        UserError, match=r"method\.growth=0\.2: .* first \(2\) alone add 0\.536 sizes"
    ):
        method.begin_task(stream.tasks[0])


@pytest.mark.parametrize("method", ["halrp", "apd", "packnet"])
def test_a_model_without_layers_to_work_on_is_refused(method: str) -> None:
    with pytest.raises(UserError, match="layers before the head, and this model trains none"):
        method_for(method, learner(mlp(hidden=[])))


def test_a_run_without_a_warm_up_has_no_residual_to_factor_and_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.warm_up=0: .*at least 1"):
        check_config(composed("method=halrp", "method.warm_up=0"))


def test_a_warm_up_that_diverges_is_told() -> None:
    stream, made = blobs("task"), fresh()
    method, _ = learned(
        made, Stream(**{**vars(stream), "tasks": stream.tasks[:1]}), "halrp", *PLAIN
    )
    made.begin_task(stream.live(1), torch.tensor([1]), stream.live_at_end)
    method.begin_task(stream.tasks[1])
    made.flat.theta.data[0] = torch.nan
    with pytest.raises(UserError, match="task 1 has diverged"):
        method._perturb(method.base, stream.tasks[1])


def test_the_authors_oddities_are_one_option() -> None:
    stream = blobs("task")
    compat = ("method.growth=null", "method.reference_compat=true")
    method, _ = learned(fresh(), stream, "halrp", *compat, "method.share=1.0")
    assert [task.layout.ranks for task in method.learned.values()] == [(1,), (1,)]
    method, _ = learned(fresh(), stream, "halrp", *compat, "method.share=0.0")
    assert [task.layout.ranks for task in method.learned.values()] == [(1,), (1,)]
    method, _ = learned(fresh(), stream, "halrp", *PLAIN, "method.share=0.0")
    assert all(sum(task.layout.ranks) <= 1 for task in method.learned.values())
    scales = []
    for more in ((), ("method.reference_compat=true",)):
        method, _ = learned(fresh(), stream, "halrp", "method.growth=null", "method.l2=10.0", *more)
        task = method.learned[1]
        scales.append(float(task.phi[: task.layout.scales].mean()))
    assert scales[0] > 0.97 > 0.93 > scales[1], "R and S decay to 1, or to 0 as theirs"


@pytest.mark.parametrize("importance", ["mean", "trace", "norm", "none", "flat"])
def test_ranks_within_a_budget_by_every_importance(importance: str) -> None:
    stream = _coloured(blobs("task"))
    made = learner(convnet(), optimizer=adam(), transform=identity(channels=3))
    few = Stream(**{**vars(stream), "tasks": stream.tasks[:2]})
    wanted = ("method.growth=null", f"method.importance={importance}", "method.budget=0.2")
    method, _ = learned(made, few, "halrp", *wanted)
    layout, single = method.learned[1].layout, method.account.single
    assert 0 < layout.factors <= 0.2 * single
    cheapest = min(sum(shape) for shape in layout.shapes)
    if importance == "flat":
        assert len(set(layout.ranks)) <= 2, "3 is the most that the first layer has"
    else:
        assert layout.factors > 0.2 * single - max(sum(shape) for shape in layout.shapes)
    assert cheapest == 7


def test_independent_networks_are_those_of_their_tasks_alone() -> None:
    stream = blobs("task")
    method, rows = learned(fresh(), stream, "independent")
    assert [row[j] for j, row in enumerate(rows)] == rows[-1]
    alone = Stream(**{**vars(stream), "tasks": stream.tasks[2:]})
    single, _ = learned(fresh(), alone, "finetune")
    assert method.network(2).theta.equal(single.learner.flat.theta)
    assert method.capacity() == {"capacity": 3 * (16 * 17 + 34), "growth": 2}


def test_one_batch_may_mix_tasks() -> None:
    stream = blobs("task")
    method, _ = learned(fresh(), stream, "halrp", *PLAIN)
    parts = [Batch(t.x, t.y, t.t) for t in stream.tests]
    mixed = parts[0].cat(parts[1]).cat(parts[2])
    order = torch.randperm(len(mixed.y), generator=seeded())
    with torch.no_grad(), method.learner.evaluating():
        together = method.predict(mixed.rows(order))
        apart = torch.cat([method.predict(part) for part in parts])[order]
    torch.testing.assert_close(together, apart)
