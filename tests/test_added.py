"""Layers that are added to a network (LoRA, random features), and RanPAC, which uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import composed, group_of, learner, method_for
from test_class_incremental import revealed, rows_of
from torch import nn

import cl_bench
from cl_bench.base.exceptions import UserError
from cl_bench.config.build import build, make_network
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.config.size import count_parameters
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch
from cl_bench.methods.ranpac import STRENGTHS
from cl_bench.models.added import LowRank, RandomFeatures, with_lora, with_random_features
from cl_bench.models.head import head_input, head_of
from cl_bench.testing.contract import check_stops
from cl_bench.testing.small import batch, blobs, identity, mlp

RGB = (3, 8, 8)
NETWORKS = {
    "mlp": ("model=mlp", "model.hidden=[7,5]"),
    "conv5": ("model=conv5", "model.norm=folded", "model.channels=[4,8]", "model.hidden=[12]"),
    "vit": (
        *("model=timm", "model.name=vit_tiny_patch16_224", "+model.arguments.depth=1"),
        *("+model.arguments.patch_size=4", "+model.arguments.embed_dim=12"),
    ),
}


def built(*overrides: str) -> Any:
    torch.manual_seed(0)
    return make_network(composed(*overrides).model, RGB, 6)


def low_rank_parts(net: Any) -> list[LowRank]:
    return [module for module in net.modules() if isinstance(module, LowRank)]


@pytest.mark.parametrize("name", NETWORKS)
def test_lora_trains_the_head_and_low_rank_changes(name: str) -> None:
    """The network starts as it was; one step moves the parameters that are counted, no others."""
    words = NETWORKS[name]
    net, plain = built(*words, "model.lora=2"), built(*words)
    x, rows = torch.rand(3, *RGB), batch(12, 6, RGB)
    with torch.no_grad():
        head_of(plain).load_state_dict(head_of(net).state_dict())
        torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-6)
    parts, head = low_rank_parts(net), head_of(net)
    assert all(part.base is not head for part in parts)
    made = learner(net, transform=identity(channels=3))
    trained = [head, *(m for part in parts for m in (part.down, part.up))]
    own = {id(p) for module in trained for p in module.parameters()}
    wanted = sum(p.numel() for p in net.parameters() if id(p) in own)
    assert len(made.flat.theta) == wanted
    assert count_parameters(composed(*words, "model.lora=2").model, RGB, 6) == wanted
    before = {key: p.clone() for key, p in net.named_parameters()}
    for _ in range(2):  # in the first step `down` has no gradient, as `up` is 0
        made.gradient(rows)
        made.step()
    moved = {key for key, p in net.named_parameters() if not p.equal(before[key])}
    assert moved == {key for key, p in net.named_parameters() if id(p) in own}


def test_a_low_rank_layer_is_the_sum_of_two_matrices() -> None:
    torch.manual_seed(0)
    part = LowRank(nn.Linear(5, 4), 2)
    nn.init.normal_(part.up.weight)
    x = torch.rand(3, 7, 5)
    assert torch.linalg.matrix_rank(part.weight - part.base.weight) == 2
    torch.testing.assert_close(part(x), F.linear(x, part.weight, part.bias))


class ReadsWeights(nn.Module):
    """A network that computes with the weight of a layer itself, as attention of some libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 5), nn.Linear(5, 4), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x.flatten(1), self.first.weight, self.first.bias).tanh()
        return self.head(self.second(hidden).tanh())


def test_curvature_where_a_network_reads_the_weight_of_a_layer() -> None:
    """Kronecker factors are refused, and the diagonal is that of the gradients of each sample."""
    torch.manual_seed(0)
    net = with_lora(ReadsWeights(), 2)
    first, second = low_rank_parts(net)
    nn.init.normal_(first.up.weight)
    nn.init.normal_(second.base.weight, std=1e-5)  # small gradients of `first` count, too
    made, task = learner(net.double()), blobs("class").tasks[0]
    with pytest.raises(UserError, match=r"the gradient of .*first\.\w+\.weight does not come from"):
        build(group_of("curvature", "curvature=kfac")).check(made, task)
    labels = "curvature=diag_fisher", "curvature.labels=empirical"
    estimator = build(group_of("curvature", *labels))
    estimator.check(made, task)
    found = estimator(made, task).values
    total = torch.zeros_like(found)
    for one in Batch(task.x, task.y, task.t).slices(1):
        theta = made.flat.theta.detach().clone().requires_grad_()
        total += torch.autograd.grad(made.loss(theta, one), theta)[0].square() / len(task)
    torch.testing.assert_close(found, total, rtol=1e-7, atol=0)


@pytest.mark.parametrize("init", ["zero", "same"])
def test_random_features_are_the_relu_of_a_projection(init: str) -> None:
    net = built(*NETWORKS["mlp"], "model.random_features=40", f"model.head_init={init}")
    plain = built(*NETWORKS["mlp"])
    (layer,) = (module for module in net.modules() if isinstance(module, RandomFeatures))
    projection, x = layer.get_buffer("projection"), torch.rand(3, *RGB)
    assert projection.shape == (40, 5) and abs(float(projection.std()) - 1) < 0.2
    with torch.no_grad():
        for one, two in zip(net.body.features, plain.features, strict=True):
            two.load_state_dict(one.state_dict())
        features = (head_input(plain, x) @ projection.T).clamp(min=0)
        torch.testing.assert_close(head_input(net, x), features)
        torch.testing.assert_close(net(x), head_of(net)(features))
    assert head_of(net).weight.shape == (6, 40)
    assert bool(head_of(net).weight.any()) == (init == "same")
    count = sum(p.numel() for p in net.parameters())
    words = *NETWORKS["mlp"], "model.random_features=40"
    assert count_parameters(composed(*words).model, RGB, 6) == count
    alone = *words, "model.head_mode=head_only"
    assert len(learner(built(*alone)).flat.theta) == 6 * 41
    assert count_parameters(composed(*alone).model, RGB, 6) == 6 * 41


def test_random_features_come_back() -> None:
    """A checkpoint has the projection, so that a run does not depend on how it is drawn again."""

    def drawn(seed: int) -> Learner:
        torch.manual_seed(seed)
        return learner(with_random_features(mlp(), 9))

    before, after = drawn(0), drawn(1)
    features = [made.features(batch()) for made in (before, after)]
    assert not features[0].equal(features[1])
    after.load_state_dict(before.state_dict())
    assert after.features(batch()).equal(features[0])


def test_random_features_of_a_tangent() -> None:
    """The head of a linearised network is on the tangent of the random features."""
    words = *NETWORKS["mlp"], "model.activation=leaky_relu", "model.random_features=8"
    net = built(*words, "model.linearize=true")
    assert net(torch.rand(3, *RGB)).shape == (3, 6) and head_of(net).in_features == 8


def test_configs_with_added_layers() -> None:
    words = "dataset=seqcifar100", "model=conv5", "model.norm=folded"
    plain, found = composed(*words), set[str]()
    for change in ("model.lora=2", "model.lora=3", "model.random_features=9"):
        cfg = composed(*words, change)
        check_config(cfg)
        found.add(config_hash(cfg))
    assert len(found | {config_hash(plain)}) == 4
    del plain.model.lora, plain.model.random_features
    assert config_hash(plain) == config_hash(composed(*words))


WRONG = {
    r"model\.lora=2: batch norm's statistics would move .* model\.norm=folded": (
        "model=conv5",
        "model.lora=2",
    ),
    r"model\.lora=2: model\.head_mode=head_only does not go with it": (
        "model.lora=2",
        "model.head_mode=head_only",
    ),
    r"model\.fixed=features: model\.lora=2 does not go": ("model.lora=2", "model.fixed=features"),
    r"model\.lora=0: ": ("model.lora=0",),
    r"model\.lora=200: .* of layer features\.1, whose weight is 100 x 3072, is at most 100": (
        "model=mlp",
        "model.lora=200",
    ),
    r"model\.fixed=head: the head is in it, and model\.random_features=9 puts a new one": (
        *("model=mlp", "model.fixed=head"),
        "model.random_features=9",
    ),
    r"model\.random_features=60000: the products of all pairs take at least": (
        "method=ranpac",
        "model.random_features=60000",
    ),
    r"model\.arguments: .*num_layers": (
        "model=torchvision",
        "model.name=vit_b_16",
        "+model.arguments.num_layers=1",
        "model.lora=2",
    ),
    r"model\.random_features=9: needs a new head, not that of the backbone": (
        "model=efficientnet_lite0",
        "model.head_init=pretrained",
        "model.random_features=9",
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_go_together(message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed("dataset=seqcifar100", *WRONG[message]))


def test_a_network_without_linear_layers_has_no_lora() -> None:
    with pytest.raises(UserError, match=r"model\.lora=2: changes linear layers before the head"):
        built("model=reduced_resnet18", "model.norm=folded", "model.lora=2")


@pytest.mark.parametrize("name", ["ewc", "derpp", "lwf"])
def test_methods_stop_and_continue_on_low_rank_changes(name: str, tmp_path: Path) -> None:
    check_stops(
        tmp_path,
        [3, 10],
        method=lambda made: method_for(name, made),
        scenario="class",
        learner=lambda rt: learner(with_lora(mlp(), 2), rt),
    )


def test_saved_networks_have_their_layers(tmp_path: Path) -> None:
    """What is loaded from a folder predicts as the run did."""
    words = "dataset=seqmnist5k", "dataset.tasks=5", "scenario=class", "tracking=none"
    more = "dataset.train_per_task=100", "model.hidden=[20]", "runtime.threads=1"
    for name, change in {"ewc": "model.lora=2", "ranpac": "model.random_features=50"}.items():
        run = cl_bench.run(*words, *more, f"method={name}", change, output_dir=str(tmp_path))
        loaded = cl_bench.load(run.folder)
        hits = [loaded.predict(test.x) == test.y for test in loaded.stream.tests]
        found = torch.stack([each.double().mean() for each in hits]).mean()
        assert float(found) == pytest.approx(run.metrics["ACC"])


def test_ranpac_equals_its_formula() -> None:
    """Ridge regression by a solver, with the strength that a loop over all of them chooses."""
    torch.manual_seed(0)
    stream, made = blobs("class"), learner(with_random_features(mlp().double(), 30))
    method = method_for("ranpac", revealed(made, stream, 2))
    theta, epochs = made.flat.theta.detach().clone(), 2
    x, y = torch.empty(0, 30, dtype=torch.float64), torch.empty(0, dtype=torch.long)

    def solved(strength: float) -> torch.Tensor:
        matrix = x.T @ x + strength * torch.eye(30, dtype=torch.float64)
        return torch.linalg.solve(matrix, x.T @ F.one_hot(y, 6).double())

    strengths = set()
    stream.tests[2].y.copy_(stream.tests[2].y.roll(7))  # labels that nothing predicts
    for task, held_out in zip(stream.tasks, stream.tests, strict=True):
        made.task = task
        method.begin_task(task)
        for _ in range(epochs):
            for rows in task.chunks(7):
                method.observe(rows)
        seen = rows_of(task, len(task))
        x, y = torch.cat([x, made.features(seen)]), torch.cat([y, seen.y])
        unseen = rows_of(held_out, len(held_out))
        own, wanted = made.features(unseen), F.one_hot(unseen.y, 6).double()
        errors = {s: float((own @ solved(s) - wanted).square().mean()) for s in STRENGTHS}
        method.validate(held_out)
        strengths.add(method.strength)
        assert errors[method.strength] == pytest.approx(min(errors.values()), rel=1e-4)
        x, y = torch.cat([x, own]), torch.cat([y, unseen.y])
        method.end_task(task)
        found = method.predict(unseen)[:, y.unique()]
        expected = (own @ solved(method.strength))[:, y.unique()]
        torch.testing.assert_close(found, expected)
    assert len(strengths) > 1 and made.sample_gradients == 0
    assert made.flat.theta.detach().equal(theta)
