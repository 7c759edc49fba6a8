"""Prompts for a vision transformer, by hooks in the network as its library runs it; and L2P."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import composed, learner, method_for
from test_class_incremental import revealed, rows_of
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.config.build import make_network
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.config.size import count_parameters
from cl_bench.core.learner import Learner
from cl_bench.core.runtime import Runtime
from cl_bench.models.foreign import adopt
from cl_bench.models.head import head_of
from cl_bench.models.prompts import INIT_MAX, Prompted, Transformer, with_prompts
from cl_bench.testing.contract import check_stops
from cl_bench.testing.small import blobs, identity, mlp

SMALL = (
    "+model.arguments.depth=1",
    "+model.arguments.patch_size=4",
    "+model.arguments.embed_dim=12",
)
SIZE: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 6,
    "num_heads": 2,
    "patch_size": 2,
    "num_classes": 6,
}


def transformer(family: str, side: int = 4, channels: int = 1) -> Any:
    """A vision transformer of two blocks of width 6, without a pool of prompts."""
    torch.manual_seed(0)
    if family != "torchvision":
        more = {"reg_tokens": 2, "no_embed_class": True} if family == "timm registers" else {}
        net: Any = timm.create_model(
            "vit_tiny_patch16_224", img_size=side, in_chans=channels, **SIZE, **more
        )
    else:
        net = torchvision.models.VisionTransformer(side, 2, 2, 2, 6, 12, num_classes=6)
        net.head_name = "heads.head"
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter)
    return adopt(net, torch.zeros(1, channels, side, side))


def prompted(*sizes: int, family: str = "timm", side: int = 4, channels: int = 1) -> Any:
    """It with prompts and keys of about length 1."""
    net = with_prompts(transformer(family, side, channels), *sizes)
    for parameter in (net.keys, net.prompts):
        nn.init.normal_(parameter, std=0.5)
    return net


def on_prompts(rt: Runtime) -> Learner:
    """A learner on a network with prompts."""
    return learner(prompted(4, 2, 2), rt, transform=identity(rt.device))


def outputs_with(net: Any, family: str, x: Tensor, before: Tensor | None) -> Tensor:
    """(T, d): all tokens after the last norm for one image, with tokens `before` its own."""
    blocks, norm = (
        (net.encoder.layers, net.encoder.ln) if family == "torchvision" else (net.blocks, net.norm)
    )
    found: list[Tensor] = []

    def prepend(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
        return None if before is None else (torch.cat([before[None], args[0]], 1), *args[1:])

    hooks = [
        blocks[0].register_forward_pre_hook(prepend),
        norm.register_forward_hook(lambda *seen: found.append(seen[2][0])),
    ]
    net(x[None])
    for hook in hooks:
        hook.remove()
    return found[0]


@pytest.mark.parametrize("family", ["timm", "timm registers", "torchvision"])
def test_an_image_gets_the_prompts_of_the_nearest_keys(family: str) -> None:
    channels = 3 if family == "torchvision" else 1
    net = prompted(5, 3, 2, family=family, channels=channels).eval()
    x, body = 9 * torch.randn(12, channels, 4, 4), net.body
    with torch.no_grad(), net.similarity():
        logits, similarity = net(x).split([6, 1], 1)
    with torch.no_grad():
        torch.testing.assert_close(net(x), logits)
        chosen = []
        for one, image in enumerate(x):
            query = outputs_with(body, family, image, None)[0]
            cosines = torch.stack([F.cosine_similarity(query, key, 0) for key in net.keys])
            best = sorted(range(5), key=lambda i: -float(cosines[i]))[:2]
            tokens = torch.cat([net.prompts[i] for i in best])
            mean = outputs_with(body, family, image, tokens)[:6].mean(0)
            torch.testing.assert_close(logits[one], head_of(net)(mean))
            torch.testing.assert_close(similarity[one, 0], cosines[best].sum())
            chosen.append(tuple(best))
    assert len({*chosen}) > 1, "all images get the same prompts"


def test_l2p_equals_its_formula() -> None:
    """The classes of the task compete; keys move towards queries; other prompts stay."""
    stream, made = blobs("class"), learner(prompted(6, 2, 1).double(), transform=identity())
    method, net = method_for("l2p", revealed(made, stream, 1), "method.pull=0.3"), made.net
    assert isinstance(net, Prompted)
    made.task = stream.tasks[1]
    method.begin_task(made.task)
    rows = rows_of(stream.tasks[1], 5)
    x = made.transform.view(rows.x).double()
    losses, used = [], set()
    for image, y in zip(x, rows.y, strict=True):
        with net.similarity():
            outputs = net(image[None])[0]
        losses.append(F.cross_entropy(outputs[None, 2:4], y[None] - 2) - 0.3 * outputs[6])
        query = outputs_with(net.body, "timm", image, None)[0]
        used.add(int(F.cosine_similarity(query[None], net.keys).argmax()))
    assert 0 < len(used) < 6
    loss = torch.stack(losses).mean()
    parameters = [p for p in net.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss, parameters)
    wanted = [p.detach() - 0.1 * slope for p, slope in zip(parameters, slopes, strict=True)]
    before = {name: p.clone() for name, p in net.named_parameters()}
    torch.testing.assert_close(method.observe(rows), loss.detach())
    for parameter, target in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.detach(), target)
    for name in ("keys", "prompts"):
        moved = (net.get_parameter(name) != before[name]).flatten(1).any(1)
        assert {int(i) for i in moved.nonzero()} == used
    still = {n for n, p in net.named_parameters() if p.equal(before[n])}
    assert still == {n for n, p in net.named_parameters() if not p.requires_grad}


def test_the_transformer_itself_draws_nothing() -> None:
    """Also while the prompts are trained, its dropout is that of evaluation."""
    net = transformer("timm")
    for block in net.blocks:
        block.mlp.drop1 = nn.Dropout(0.5)
    made = with_prompts(adopt(net, torch.zeros(1, 1, 4, 4)), 3, 2, 1).train()
    x = torch.rand(2, 1, 4, 4)
    assert made(x).equal(made(x)) and not any(m.training for m in made.body.modules())


def test_close_keys_are_told_apart_in_bfloat16() -> None:
    """The choice of prompts is computed in full precision, also inside autocast."""
    net = prompted(8, 1, 1)
    with torch.no_grad():
        net.keys.copy_(torch.ones(6) + 1e-3 * torch.randn(8, 6))
    net.transformer = Transformer(lambda x: x, lambda tokens: tokens, head_of(net))
    tokens = torch.ones(32, 2, 6) + 0.1 * torch.randn(32, 2, 6)
    with torch.no_grad(), net.similarity():
        plain = net(tokens)[:, -1]
        with torch.autocast("cpu", torch.bfloat16):
            assert net(tokens)[:, -1].equal(plain)


STOPPED = [("l2p", "class"), ("l2p", "task"), ("ewc", "class"), ("derpp", "class")]


@pytest.mark.parametrize(("name", "scenario"), STOPPED)
def test_methods_stop_and_continue_on_prompts(name: str, scenario: str, tmp_path: Path) -> None:
    check_stops(
        tmp_path,
        [3, 10],
        method=lambda made: method_for(name, made),
        scenario=scenario,
        learner=on_prompts,
    )


def test_configs_with_prompts() -> None:
    words = "method=l2p", "dataset=seqcifar100", "scenario=class", *SMALL
    cfg = composed(*words)
    check_config(cfg)
    net: Any = make_network(cfg.model, (3, 32, 32), 100)
    count = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert count == 10 * 12 + 10 * 10 * 12 + 100 * 13  # keys, prompts, and the head
    assert count_parameters(cfg.model, (3, 32, 32), 100) == count
    assert not head_of(net).weight.any() and 0 < float(net.keys.detach().max()) <= INIT_MAX
    assert config_hash(cfg) != config_hash(composed(*words, "model.prompts=[10,10,5]"))


WRONG = {
    r"model\.prompts=null: method=l2p trains prompts .*\[10,10,4\]": ("model.prompts=null",),
    r"model\.lora=2: model\.prompts=\[10, 10, 4\] does not go with it": ("model.lora=2",),
    r"model\.prompts=.*: model\.random_features=5 does not go": ("model.random_features=5",),
    r"model\.prompts=\[10, 10\]: must be null or a list of 3 values": ("model.prompts=[10,10]",),
    r"model\.prompts=\[4, 2, 5\]: an image cannot get 5 of 4": ("model.prompts=[4,2,5]",),
    r"model\.name=vit_tiny_patch16_224: patches of 5 pixels do not fill images of 32; use": (
        "+model.arguments.patch_size=5",
    ),
    r"model\.prompts: goes with vision transformers .* this is ResNet": (
        "model=torchvision",
        "model.name=resnet18",
    ),
    r"model\.prompts: goes with vision transformers .* this is MLP": ("model=mlp",),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_go_together(message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed("method=l2p", "dataset=seqcifar100", *WRONG[message]))


def test_without_prompts_the_classes_of_the_task_are_learned() -> None:
    stream, made = blobs("class"), learner(mlp())
    method = method_for("l2p", revealed(made, stream, 1))
    made.task = stream.tasks[1]
    method.begin_task(made.task)
    theta = made.flat.theta.detach().clone().requires_grad_()
    rows = rows_of(stream.tasks[1], 8)
    loss = F.cross_entropy(made.logits(theta, rows)[:, 2:4], rows.y - 2)
    torch.testing.assert_close(method.observe(rows), loss.detach())
