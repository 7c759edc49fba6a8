"""Slow obvious versions: one sample, one root, one place at a time; matrices built whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from conftest import CPU, learner, mlp
from torch import Generator, Tensor, nn
from torch.autograd import forward_ad

from cl_bench.core.criteria import CrossEntropy, ScaledMSE
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.data.augment import Transform
from cl_bench.models.added import LowRank, with_lora
from cl_bench.models.foreign import adopt
from cl_bench.models.linearized import Linearized

KINDS = (
    "mlp",
    "conv",
    "norm",
    "groups",
    "tokens",
    "lora tokens",
    "tangent",
    "tangent groups",
    "tangent tokens",
)
CRITERIA = {"ce": CrossEntropy(), "mse": ScaledMSE(3.0)}
CLASSES = 4


class ConvNet(nn.Module):
    """Stride, padding, dilation, with and without bias; batch norm where `norm`."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=(2, 1), padding=(1, 0)),
            nn.BatchNorm2d(3) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Conv2d(3, 2, 2, bias=False, dilation=(1, 2)),
            nn.Tanh(),
            nn.Flatten(),
        )
        if norm:
            self.body[1]._buffers["num_batches_tracked"] = None
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class GroupedNet(nn.Module):
    """Convolutions in groups: of one input and two outputs, depthwise, of two inputs and three."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=(2, 1), padding=1, groups=2),
            nn.Tanh(),
            nn.ZeroPad2d((0, 1, 1, 1)),
            nn.Conv2d(4, 4, (3, 2), groups=4),
            nn.ReLU6(),
            nn.Conv2d(4, 6, 2, stride=(1, 2), dilation=(1, 3), groups=2, bias=False),
            nn.Tanh(),
            nn.Flatten(),
        )
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class TokenNet(nn.Module):
    """A vision transformer of one block: a class token, positions, attention, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 4, (5, 2), stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(0.5 * torch.randn(1, 4, 4))
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4), nn.LayerNorm(4)])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4, bias=False))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x[:, 0]))


def network(kind: str) -> Any:
    """The network of a kind, before it is linearised."""
    if kind == "mlp":
        return mlp(CLASSES, (2, 2, 2), hidden=[5, 3], activation="tanh")
    if "tokens" not in kind:
        return GroupedNet() if "groups" in kind else ConvNet(kind == "norm")
    net: Any = adopt(TokenNet(), torch.zeros(1, 2, 5, 6))
    for norm in net.norms:
        nn.init.normal_(norm.weight)
    if "lora" in kind:
        net = with_lora(net, 2)
        for layer in net.modules():
            if isinstance(layer, LowRank):
                nn.init.normal_(layer.up.weight)
    return net


def case(kind: str, criterion: str = "ce", samples: int = 7) -> tuple[Learner, Task]:
    """A learner in float64 and a task of random pixels."""
    torch.manual_seed(1)
    net = network(kind)
    if "tangent" in kind:
        net = Linearized(net, "bilinear")
        for parameter in net.body.parameters():
            nn.init.normal_(parameter, std=0.3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    transform = Transform([0.3] * 2, [0.5] * 2, None, 0, False, None, 0.0, "anew", CPU)
    transform.scale, transform.shift = transform.scale.double(), transform.shift.double()
    made = learner(net.double(), transform=transform)
    made.criterion = CRITERIA[criterion]
    g = Generator().manual_seed(3)
    shape = (2, 2, 2) if kind == "mlp" else (2, 5, 6)
    x = torch.randint(0, 256, (samples, *shape), generator=g, dtype=torch.uint8)
    y = torch.randint(0, CLASSES, (samples,), generator=g)
    return made, Task(0, x, y, torch.zeros(samples, dtype=torch.long))


def net(made: Learner) -> Any:
    """Its network, whatever its layers are called."""
    return made.net


def singles(made: Learner, task: Task) -> Iterator[tuple[Batch, Tensor]]:
    """Each sample and its logits (1, K), with the graph, in evaluation mode."""
    made.net.eval()
    for single in Batch(task.x, task.y, task.t).slices(1):
        yield single, made.net(made.transform.view(single.x))
    made.net.train()


def flat_gradient(made: Learner, scalar: Tensor) -> Tensor:
    """d scalar / d theta (P,), by the network's own parameters."""
    parameters = [p for p in made.net.parameters() if p.requires_grad]
    found = torch.autograd.grad(scalar, parameters, retain_graph=True)
    return torch.cat([part.reshape(-1) for part in found])


def root_gradients(made: Learner, task: Task) -> Tensor:
    """(N, K, P): J' root_r of each sample by as many backward passes."""
    rows = []
    for single, logits in singles(made, task):
        roots = made.criterion.hessian_root(logits.detach(), made.heads.competing(single), None)
        rows.append(torch.stack([flat_gradient(made, (logits * r).sum()) for r in roots]))
    return torch.stack(rows)


def fisher(made: Learner, task: Task) -> Tensor:
    """(P, P): the exact Fisher."""
    rows = root_gradients(made, task)
    return torch.einsum("nrp,nrq->pq", rows, rows) / len(task)


def hessian(made: Learner, task: Task) -> Tensor:
    """(P, P): the Hessian of the mean loss, row by row by double backward."""
    made.net.eval()
    theta = made.flat.theta.detach().clone().requires_grad_()
    loss = made.loss(theta, Batch(task.x, task.y, task.t))
    (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
    rows = [torch.autograd.grad(s, theta, retain_graph=True)[0] for s in slope]
    made.net.train()
    return torch.stack(rows)


def labelled_gradients(made: Learner, task: Task) -> Tensor:
    """(N, P): each sample's gradient at its true label."""
    found = []
    for single, logits in singles(made, task):
        loss = made.criterion(logits, single.y, made.heads.competing(single))
        found.append(flat_gradient(made, loss.sum()))
    return torch.stack(found)


def dense(matvec: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """(P, P): column by column."""
    return torch.stack([matvec(e) for e in torch.eye(count, dtype=torch.float64)], 1)


Unit = tuple[str, int]  # a layer and one of its groups


def weighted(made: Learner) -> dict[str, Any]:
    """The linear and convolutional layers that are trained, by name."""
    modules = dict(made.net.named_modules())
    kept = {n: m for n, m in modules.items() if isinstance(m, nn.Linear | nn.Conv2d)}
    return {n: m for n, m in kept.items() if f"{n}.weight" in made.flat.slices}


def layer_views(made: Learner, task: Task) -> Iterator[dict[Any, tuple[Tensor, Tensor]]]:
    """For each sample and root: (layer, group) -> (a (L, d), s (L, out)), by unfolding by hand."""
    layers = weighted(made)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def see(layer: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            given, made = forward_ad.unpack_dual(args[0]), forward_ad.unpack_dual(out)
            tangent = out if made.tangent is None else made.tangent
            seen[name] = given.primal.detach(), tangent

        return see

    hooks = [m.register_forward_hook(watch(n)) for n, m in layers.items()]
    for single, logits in singles(made, task):
        roots = made.criterion.hessian_root(logits.detach(), made.heads.competing(single), None)
        for r, root in enumerate(roots):
            outs = [out for _, out in seen.values()]
            slopes = torch.autograd.grad((logits * root).sum(), outs, retain_graph=True)
            pairs = zip(seen.items(), slopes, strict=True)
            yield {"root": r} | {  # type: ignore[dict-item]
                (name, group): found
                for (name, (a, _)), s in pairs
                for group, found in enumerate(_places(layers[name], a, s))
            }
    for hook in hooks:
        hook.remove()


def _places(layer: nn.Module, a: Tensor, s: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each group: the inputs and the output gradients at each place."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    parts = zip(a.chunk(groups, 1), s.chunk(groups, 1), strict=True) if groups > 1 else [(a, s)]
    for own_a, own_s in parts:
        if isinstance(layer, nn.Linear):
            rows, slopes = own_a.flatten(0, -2), own_s.flatten(0, -2)  # one row for each token
        else:
            rows, slopes = _unfolded(layer, own_a, own_s)
        if layer.bias is not None:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        yield rows, slopes


def _unfolded(layer: Any, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    (ph, pw), (dh, dw), (sh, sw) = layer.padding, layer.dilation, layer.stride
    kh, kw = layer.kernel_size
    padded, found = F.pad(a[0], (pw, pw, ph, ph)), []
    for i in range(s.shape[2]):
        for j in range(s.shape[3]):
            top, left = i * sh, j * sw
            window = padded[:, top : top + dh * kh : dh, left : left + dw * kw : dw]
            found.append(window[:, :kh, :kw].reshape(-1))
    return torch.stack(found), s[0].flatten(1).T


def kfac(made: Learner, task: Task) -> dict[Unit, tuple[Tensor, Tensor]]:
    """(layer, group) -> (A, G): sums over places by loops."""
    found: dict[Unit, list[Tensor]] = {}
    for views in layer_views(made, task):
        root = views.pop("root")
        for name, (a, s) in views.items():
            pair = found.setdefault(name, [a.new_zeros(a.shape[1], a.shape[1]), 0 * s.T @ s])
            for i in range(len(a)):
                if root == 0:
                    pair[0] += torch.outer(a[i], a[i]) / len(task)
                pair[1] += torch.outer(s[i], s[i]) / (len(a) * len(task))
    return {name: (a, g) for name, (a, g) in found.items()}


def tkfac(made: Learner, task: Task) -> dict[Unit, tuple[Tensor, Tensor, Tensor]]:
    """(layer, group) -> (Phi, Psi, delta): Gao et al. theorem 4.3 by loops."""
    found: dict[Unit, list[Tensor]] = {}
    for views in layer_views(made, task):
        views.pop("root")
        for name, (a, s) in views.items():
            zero = a.new_zeros(a.shape[1], a.shape[1]), 0 * s.T @ s, a.new_zeros(())
            triple = found.setdefault(name, list(zero))
            for i in range(len(a)):
                big, small = torch.outer(a[i], a[i]), torch.outer(s[i], s[i])
                triple[0] += small.trace() * big / len(task)
                triple[1] += big.trace() * small / len(task)
                triple[2] += big.trace() * small.trace() / len(task)
    return {name: (phi / d, psi / d, d) for name, (phi, psi, d) in found.items()}


def order(made: Learner, unit: Unit) -> Tensor:
    """Positions in the flat vector of a group's [W | b], row by row."""
    name, group = unit
    index = torch.arange(made.flat.theta.numel())
    weight = index[made.flat.slices[f"{name}.weight"]]
    out = made.flat.shapes[f"{name}.weight"][0]
    rows = weight.view(out, -1)
    if f"{name}.bias" in made.flat.slices:
        rows = torch.cat([rows, index[made.flat.slices[f"{name}.bias"]].unsqueeze(1)], 1)
    return rows.chunk(groups(made, name))[group].reshape(-1)


def groups(made: Learner, name: str) -> int:
    """The number of groups of a layer."""
    return getattr(made.net.get_submodule(name), "groups", 1)


def units(made: Learner) -> list[Unit]:
    """Each group of each layer."""
    return [(name, group) for name in weighted(made) for group in range(groups(made, name))]


def has_exact_block(made: Learner, unit: Unit) -> bool:
    """Whether it is one of several groups of one output each."""
    return made.flat.shapes[f"{unit[0]}.weight"][0] == groups(made, unit[0]) > 1
