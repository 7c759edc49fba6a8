"""What each method does to a gradient, against the formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference as ref
import torch
import torch.nn.functional as F
from conftest import DEVICES, batch, blobs, identity, learner, machine, method_for, mlp, resnet
from test_class_incremental import revealed
from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.core.optim import SGD
from cl_bench.core.types import Batch
from cl_bench.data.stream import joint
from cl_bench.methods.agem import project
from cl_bench.methods.lwf import divergence
from cl_bench.testing.small import NormNet


def moved(method: object, rows: Batch) -> torch.Tensor:
    """How far one step goes, divided by minus the learning rate: the gradient that was used."""
    theta = method.learner.flat.theta  # type: ignore[attr-defined]
    before = theta.detach().clone()
    method.observe(rows)  # type: ignore[attr-defined]
    return (before - theta.detach()) / 0.1


def test_finetune_follows_the_gradient() -> None:
    made = learner(mlp())
    method = method_for("finetune", made)
    rows = batch()
    made.gradient(rows)
    expected = made.flat.grad.clone()
    torch.testing.assert_close(moved(method, rows), expected, rtol=1e-3, atol=1e-6)


def test_er_is_one_mean_over_new_and_old() -> None:
    made = learner(mlp())
    method = method_for("er", made, "buffer.capacity=6", "method.replay=4")
    first, second = batch(6), batch(10).rows(slice(6, 10))
    moved(method, first)
    draws = torch.randperm(6, generator=_copy(made.rng))[:4]
    union = second.cat(method.memory.rows.rows(draws))
    made.gradient(union)
    expected = made.flat.grad.clone()
    torch.testing.assert_close(moved(method, second), expected, rtol=1e-3, atol=1e-6)


def test_er_weighs_new_and_old_by_the_number_of_the_task() -> None:
    """In the third task a third of the new loss, and two thirds of the old one."""
    made, stream = learner(mlp()), blobs("data")
    method = method_for("er", made, "method.combine=tasks", "method.replay=4")
    for task in stream.tasks:
        method.begin_task(task)
    method.memory.add(batch(6))
    second = batch(10).rows(slice(6, 10))
    draws = torch.randperm(6, generator=_copy(made.rng))[:4]
    parts = []
    for rows in (second, method.memory.rows.rows(draws)):
        made.gradient(rows)
        parts.append(made.flat.grad.clone())
    expected = parts[0] / 3 + 2 * parts[1] / 3
    torch.testing.assert_close(moved(method, second), expected, rtol=1e-3, atol=1e-6)
    joined = joint(stream, None).tasks[0]
    with pytest.raises(UserError, match=r"method\.combine=tasks: the method must be told where a"):
        method.check_network(replace(joined, parts=(30, 30, 30)))


def test_lwf_weighs_loss_and_distillation_by_the_number_of_the_task() -> None:
    """In the third task a third of the loss, and two thirds of the mean over two old heads.

    That is a third of the gradient of combine=sum, which adds the heads up. Where there is one old
    head, as in data-IL, it is a half of it in the second task.
    """
    for scenario, last in (("task", 2), ("data", 1)):
        found = {}
        for combine in ("sum", "tasks"):
            torch.manual_seed(0)
            made, stream = learner(mlp()), blobs(scenario)
            method = method_for("lwf", made, f"method.combine={combine}")
            for task in stream.tasks[: last + 1]:
                revealed(made, stream, task.id)
                method.begin_task(task)
                made.flat.theta.detach().add_(0.05)
                if task.id < last:
                    method.end_task(task)
            found[combine] = moved(method, Batch(task.x[:8], task.y[:8], task.t[:8]))
        expected = found["sum"] / (last + 1)
        torch.testing.assert_close(found["tasks"], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("merging", ["sum", "online", "last", "count", "apart"])
def test_ewc_adds_the_penaltys_gradient(merging: str) -> None:
    """Against autograd of loss + strength / 2 sum_j (theta - a_j)' F_j (theta - a_j)."""
    made, stream = learner(mlp()), blobs("data")
    chosen = "curvature.labels=exact", f"merging={merging}", "method.step=explicit"
    method = method_for("ewc", made, "method.strength=0.5", *chosen)
    rows = Batch(*(getattr(stream.tasks[0], f)[:8] for f in "xyt"))
    fishers, anchors = [], []
    for task in stream.tasks:
        for _ in range(3):
            method.observe(rows)
        fishers.append(method.estimate(made, task).values)
        anchors.append(made.flat.theta.detach().clone())
        method.end_task(task)
    weights = {"sum": (1, 1, 1), "online": (0.81, 0.9, 1), "last": (0, 0, 1), "apart": (1, 1, 1)}
    shares = weights.get(merging, (1 / 3, 1 / 3, 1 / 3))
    if merging != "apart":
        anchors = [anchors[-1]] * 3
    with torch.no_grad():
        made.flat.theta.add_(0.1)

    def objective(theta: torch.Tensor, rows: Batch) -> torch.Tensor:
        parts = zip(shares, fishers, anchors, strict=True)
        return made.loss(theta, rows) + sum(
            0.25 * w * (f * (theta - a).square()).sum() for w, f, a in parts
        )

    made.gradient_of(objective, rows)
    expected = made.flat.grad.clone()
    torch.testing.assert_close(moved(method, rows), expected, rtol=1e-3, atol=1e-5)


def test_strength_zero_is_finetune() -> None:
    def run(name: str, *overrides: str) -> torch.Tensor:
        rt = machine()
        torch.manual_seed(3)
        made, stream = learner(mlp(), rt), blobs("data")
        method = method_for(name, made, *overrides)
        for task in stream.tasks:
            for rows in task.batches(10, Generator().manual_seed(0)):
                method.observe(rows)
            method.end_task(task)
        return made.flat.theta.detach()

    plain = run("finetune")
    for name in ("ewc", "osla", "mas", "si", "rwalk", "l2", "lwf", "distill"):
        torch.testing.assert_close(run(name, "method.strength=0.0"), plain)


@pytest.mark.parametrize("step", ["explicit", "implicit"])
def test_si_credits_the_path(step: str) -> None:
    """omega is -g dtheta summed by hand; with small steps its sum is the loss that went down."""
    fine = learner(mlp(), optimizer=lambda p: SGD(p, lr=0.002, momentum=0.5))
    stream = blobs("data")
    method = method_for("si", fine, f"method.step={step}", "method.strength=0.3")
    total = torch.zeros_like(fine.flat.grad)
    importance = torch.zeros_like(total)
    for task in stream.tasks:
        rows = Batch(task.x, task.y, task.t)
        method.begin_task(task)
        start, path = fine.flat.theta.detach().clone(), torch.zeros_like(total)
        first = fine.loss(fine.flat.theta, rows).item()
        for _ in range(40):
            fine.gradient(rows)
            slope, before = fine.flat.grad.clone(), fine.flat.theta.detach().clone()
            method.observe(rows)
            path -= slope * (fine.flat.theta.detach() - before)
        torch.testing.assert_close(method.omega, path)
        drop = first - fine.loss(fine.flat.theta, rows).item()
        assert float(path.sum()) == pytest.approx(drop, rel=0.05)
        importance += path.clamp(min=0) / ((fine.flat.theta.detach() - start).square() + 0.1)
        method.end_task(task)
        torch.testing.assert_close(method.penalty.quadratics[0].curvature.values, importance)


@pytest.mark.parametrize("scenario", ["data", "task", "class"])
@pytest.mark.parametrize("name", ["lwf", "distill"])
def test_distillation(name: str, scenario: str) -> None:
    """Against KL by hand over each past head; zero, and without a gradient, at the teacher."""
    made, stream = learner(mlp()), blobs(scenario)
    method = method_for(name, made, "method.replay=5")
    for task in stream.tasks[:2]:
        made.begin_task(stream.live(task.id), task.t.unique(), stream.live_at_end)
        for rows in task.batches(10, Generator().manual_seed(0)):
            method.observe(rows)
        method.end_task(task)
    teacher = made.flat.theta.detach().clone()
    now = stream.tasks[2]
    made.begin_task(stream.live(2), now.t.unique(), stream.live_at_end)
    rows = Batch(now.x[:9], now.y[:9], now.t[:9])
    made.gradient(rows)
    plain = made.flat.grad.clone()
    torch.testing.assert_close(moved(method, rows), plain, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        made.flat.theta.copy_(teacher + 0.1)
    seen = rows
    if name == "distill":
        drawn = torch.randperm(60, generator=_copy(made.rng))[:5]
        old = [torch.cat([getattr(t, f) for t in stream.tasks[:2]])[drawn] for f in "xyt"]
        seen = Batch(*old)
    heads = stream.live(1)[:2]
    temperature = 2.0 if name == "lwf" else 1.0

    def objective(theta: torch.Tensor, rows: Batch) -> torch.Tensor:
        pulls = torch.zeros(())
        for i in range(len(seen.y)):
            one = seen.rows(slice(i, i + 1))
            sets = {tuple(h.tolist()) for h in heads}
            sets = {tuple(heads[int(one.t)].tolist())} if name == "distill" else sets
            for head in sets:
                where = torch.tensor(head)
                logs = [
                    (made.logits(th, one)[0, where] / temperature).log_softmax(0)
                    for th in (teacher, theta)
                ]
                pulls = pulls + (logs[0].exp() * (logs[0] - logs[1])).sum()
        return made.loss(theta, rows) + temperature**2 * pulls / len(seen.y)

    made.gradient_of(objective, rows)
    expected = made.flat.grad.clone()
    torch.testing.assert_close(moved(method, rows), expected, rtol=1e-3, atol=1e-5)


def test_the_teacher_keeps_its_batch_norm() -> None:
    made = learner(resnet())
    rows = batch(shape=(3, 8, 8))
    then = made.snapshot()
    with torch.no_grad(), made.evaluating():
        said = made.logits(made.flat.theta, rows)
    made.net.train()
    for _ in range(3):
        made.descend(rows)
    torch.testing.assert_close(made.snapshot_logits(then, rows), said)
    assert made.net.training and not then.buffers["stem.1.running_mean"].equal(
        ref.net(made).stem[1].running_mean
    )


def test_distilling_on_old_data_is_the_prior_to_second_order() -> None:
    """Yun 2020 section 3: equal gradients at the old network; the KL's Hessian is the Fisher."""
    made, task = ref.case("mlp")
    old = Batch(task.x, task.y, task.t)
    then = made.snapshot()
    live = torch.ones(1, 1, ref.CLASSES, dtype=torch.bool)
    said = made.snapshot_logits(then, old)

    def kept(theta: torch.Tensor) -> torch.Tensor:
        return divergence(said, made.logits(theta, old), live, 1.0).mean()

    start = then.theta
    assert torch.func.grad(kept)(start).abs().max() < 1e-12
    fisher = ref.fisher(made, task)
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(kept))(start), fisher)
    direction = torch.randn(len(start), dtype=torch.float64, generator=Generator().manual_seed(0))
    gaps = []
    for size in (1e-2, 5e-3):
        d = size * direction
        gaps.append(float((kept(start + d) - d @ fisher @ d / 2).abs()))
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.1), "they part at third order"


@pytest.mark.parametrize("device", DEVICES)
def test_projection(device: str) -> None:
    g = torch.randn(1000, generator=Generator().manual_seed(0)).to(device)
    against = -g + 0.3 * torch.randn(1000, generator=Generator().manual_seed(1)).to(device)
    found = g.clone()
    project(found, against)
    assert abs(found @ against) < 1e-3 * (g @ g) and found.norm() <= g.norm()
    residual = g - found
    along = residual @ against / (residual.norm() * against.norm())
    assert abs(along) == pytest.approx(1, abs=1e-4), "what is taken away lies along r"
    agreeing = g.clone()
    project(agreeing, g + 0.1)
    assert agreeing.equal(g)
    project(agreeing, torch.zeros_like(g))
    assert agreeing.equal(g), "a reference of zero forbids nothing"


def test_agem_never_raises_the_loss_on_memory_to_first_order() -> None:
    made, stream = learner(mlp()), blobs("data")
    method = method_for("agem", made, "buffer.per_task=10", "method.replay=10")
    for task in stream.tasks:
        for rows in task.batches(10, Generator().manual_seed(0), epochs=5):
            if len(method.memory):
                drawn = torch.randperm(len(method.memory), generator=_copy(made.rng))[:10]
                made.gradient(method.memory.rows.rows(drawn))
                reference = made.flat.grad.clone()
                step = moved(method, rows)
                assert step @ reference >= -1e-3 * step.norm() * reference.norm()
            else:
                method.observe(rows)
        method.end_task(task)
    assert len(method.memory) == 30


def test_agem_memory_is_of_past_tasks_alone() -> None:
    made, stream = learner(mlp()), blobs("task")
    method = method_for("agem", made, "buffer.per_task=5")
    for task in stream.tasks[:2]:
        for rows in task.batches(10, Generator().manual_seed(0)):
            method.observe(rows)
            if len(method.memory):
                assert method.memory.sample(99).t.lt(task.id).all()
        method.end_task(task)


def _copy(rng: Generator) -> Generator:
    twin = Generator()
    twin.set_state(rng.get_state())
    return twin


@pytest.mark.parametrize(("distance", "draws"), [("mean", 2), ("sum", 2), ("mean", 1)])
def test_der_equals_its_formula(distance: str, draws: int) -> None:
    """loss + alpha |f(x') - z'|^2 + beta loss(x'', y''), by a slow version; z' as it was stored."""
    made = learner(mlp())
    options = "method.alpha=0.7", "method.beta=0.4", f"method.distance={distance}"
    options += f"method.draws={draws}", "method.replay=3", "buffer.capacity=8"
    method = method_for("der", made, *options)
    rows = batch(8)
    said = made.logits(made.flat.theta, rows).detach()
    method.observe(rows)
    assert method.memory.rows.logits.equal(said), "before the step"
    state, theta = made.rng.get_state(), made.flat.theta.detach().clone().requires_grad_()
    dark = method.memory.sample(3)
    light = method.memory.sample(3) if draws == 2 else dark
    made.rng.set_state(state)
    gap = (made.logits(theta, dark) - dark.logits).square().sum(1)
    gap = gap / 6 if distance == "mean" else gap
    total = made.loss(theta, rows) + 0.7 * gap.mean() + 0.4 * made.loss(theta, light)
    (slope,) = torch.autograd.grad(total, theta)
    loss = method.observe(rows)
    torch.testing.assert_close(loss, total.detach())
    torch.testing.assert_close(made.flat.theta.detach(), theta.detach() - 0.1 * slope)
    assert made.sample_gradients == 8 + 8 + 3 * draws


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_ders_parts_may_share_a_forward_pass(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where batch norm does not couple their samples: the same steps, by autograd or without."""
    ends = []
    for together, direct in ((True, True), (True, False), (False, False)):
        torch.manual_seed(0)
        made = learner(mlp().double())
        made.direct = made.direct if direct else None
        monkeypatch.setattr(type(made), "couples_samples", not together)
        options = "method.alpha=0.7", f"method.beta={beta}", "method.replay=3", "buffer.capacity=8"
        method = method_for("der", made, *options)
        for part in batch(32).slices(8):
            method.observe(part)
        ends.append((made.flat.theta.detach(), method.memory.rows.logits, made.sample_gradients))
    for theta, logits, count in ends[1:]:
        torch.testing.assert_close(theta, ends[0][0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(logits, ends[0][1], rtol=1e-5, atol=1e-6)
        assert count == ends[0][2]


@pytest.mark.parametrize("draws", [2, 1])
@pytest.mark.parametrize("forward", ["apart", "together"])
def test_what_batch_norm_sees_of_ders_parts(forward: str, draws: int) -> None:
    """Each part by itself, or all of them at once: the loss by a slow version."""
    torch.manual_seed(0)
    made = learner(NormNet().double(), transform=identity())
    options = "method.alpha=0.7", "method.beta=0.4", "method.replay=3", "buffer.capacity=8"
    options += f"method.forward={forward}", f"method.draws={draws}"
    method = method_for("der", made, *options)
    method.observe(batch(8))
    state = made.rng.get_state()
    old, rows = [method.memory.sample(3) for _ in range(draws)], batch(8)
    made.rng.set_state(state)
    with torch.no_grad():
        parts = [part.x.double() / 255 for part in (rows, *old)]
        new, dark, *light = (
            (made.net(x) for x in parts)
            if forward == "apart"
            else made.net(torch.cat(parts)).split([8, *[3] * draws])
        )
    labelled = light[0] if light else dark
    expected = F.cross_entropy(new, rows.y) + 0.4 * F.cross_entropy(labelled, old[-1].y)
    expected = expected + 0.7 * (dark - old[0].logits).square().mean()
    torch.testing.assert_close(method.observe(rows), expected, rtol=1e-6, atol=1e-6)


def test_ders_distance_is_zero_right_after_insertion() -> None:
    """No step in between: what is stored is what the network says."""
    made = learner(mlp(), optimizer=lambda params: SGD(params, lr=0.0, momentum=0.0))
    plain = method_for("der", made, "method.alpha=100.0", "buffer.capacity=8")
    rows = batch(8)
    first = plain.observe(rows)
    torch.testing.assert_close(plain.observe(rows), first)
