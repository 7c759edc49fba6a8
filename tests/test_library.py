"""Networks of torchvision and timm, and a network of the user's: heads, draws, equal outputs."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import composed, forget_sources, machine
from omegaconf import OmegaConf
from torch import nn

import cl_bench
from cl_bench.base.exceptions import UserError
from cl_bench.config.backbone import apply
from cl_bench.config.build import make_network
from cl_bench.config.check import check_config
from cl_bench.config.meta import has_batch_norm
from cl_bench.core.flat import FlatParams
from cl_bench.methods.shared.low_rank import layers_of
from cl_bench.models import library
from cl_bench.models.foreign import DropPath, adopt
from cl_bench.models.head import head_input, head_name, head_of
from cl_bench.models.layers import Dropout, set_dropout_generator

SHAPE = (3, 32, 32)
HEADS = {  # the last layer's name, of each family of torchvision that has linear heads
    "resnet18": "fc",
    "vit_b_32": "heads.head",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "convnext_tiny": "classifier.2",
    "swin_t": "head",
    "densenet121": "classifier",
    "vgg11": "classifier.6",
}


def built(*overrides: str, classes: int = 7) -> Any:
    torch.manual_seed(0)
    return make_network(composed(*overrides).model, SHAPE, classes)


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_torchvision(name: str) -> None:
    net = built("model=torchvision", f"model.name={name}").eval()
    assert head_name(net) == HEADS[name] and head_of(net).out_features == 7
    x = torch.rand(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(head_of(net)(head_input(net, x)), net(x))
    assert not any(type(m) in (nn.Dropout, nn.MultiheadAttention) for m in net.modules())


def test_what_was_replaced_computes_the_same() -> None:
    """Attention, dropout and stochastic depth: equal in evaluation mode, own draws in training."""
    torch.manual_seed(0)
    theirs: Any = torchvision.models.VisionTransformer(
        32, 8, 2, 2, 12, 24, dropout=0.3, num_classes=7
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.rand(3, *SHAPE)
    theirs.head_name = "heads.head"
    ours: Any = adopt(copy.deepcopy(theirs), x[:1])
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    rt = machine()
    set_dropout_generator(ours, rt.draws)
    state, before = rt.draws.get_state(), torch.get_rng_state()
    first = ours.train()(x)
    rt.draws.set_state(state)
    assert ours(x).equal(first) and not ours(x).equal(first)
    assert torch.get_rng_state().equal(before)


def test_the_layers_that_are_pruned_or_factored() -> None:
    """All matrices and kernels but the head's; neither position embeddings nor the class token."""
    net: Any = torchvision.models.VisionTransformer(32, 8, 1, 2, 12, 24, num_classes=7)
    net.head_name = "heads.head"
    net = adopt(net, torch.rand(1, *SHAPE))
    names = {name for name, _ in layers_of(FlatParams(net, False), head_of(net))}
    several = {name for name, p in net.named_parameters() if p.dim() > 1}
    assert several - names == {"class_token", "encoder.pos_embedding", "heads.head.weight"}
    assert len(names) == 5  # patches, attention's two, and the two of the layers after it


def test_stochastic_depth_by_rows_and_whole() -> None:
    x = torch.ones(4000, 2)
    for by_row in (True, False):
        layer = DropPath(0.25, by_row)
        layer.rng = torch.Generator().manual_seed(0)
        out = layer.train()(x)
        assert all(v in (0.0, pytest.approx(1 / 0.75)) for v in out.unique().tolist())
        assert out[:, 0].equal(out[:, 1])
        if by_row:
            assert (out[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
        else:
            assert len(out.unique()) == 1
    assert layer.eval()(x) is x


def test_timm_in_place_of_torchvision() -> None:
    """Built for the size of the data, its own layer norm and drop path replaced."""
    timm: Any = pytest.importorskip("timm")
    small = ("+model.arguments.patch_size=8", "+model.arguments.depth=1")
    net = built("model=timm", *small, "+model.arguments.drop_path_rate=0.5").eval()
    assert head_name(net) == "head" and net.pos_embed.shape[1] == 1 + 16
    torch.manual_seed(0)
    theirs = timm.create_model(
        *("vit_tiny_patch16_224",), img_size=32, patch_size=8, depth=1, num_classes=7
    )
    x = torch.rand(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs.eval()(x))
    grey = composed("model=timm", "model.name=resnet10t").model
    assert make_network(grey, (1, 28, 28), 3)(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


REFUSED = [
    (["model.name=resnet19"], r"model\.name=resnet19: no such network; there are resnet\d+, "),
    (["model.weights=V3"], r"model\.weights=V3: resnet18 has no such weights; there are DEFAULT, "),
    (["+model.arguments.depth=3"], r"model\.arguments: ResNet.__init__\(\) got an unexpected "),
    (["model.name=squeezenet1_0"], r"model\.name: the network's last layer is not linear"),
    (["model.head=layer1"], r"model\.head=layer1: the network has no linear layer layer1 with"),
    (["model.linearize=true"], r"model\.linearize=true: batch norm's statistics would move"),
]


@pytest.mark.parametrize(("words", "line"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_before_data_is_loaded(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_config(composed("model=torchvision", "dataset=seqcifar100", *words))


def test_grey_images_and_outputs_that_are_no_logits() -> None:
    with pytest.raises(UserError, match="model=torchvision: its networks see 3 channels"):
        make_network(composed("model=torchvision").model, (1, 28, 28), 7)

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3072, 7)

        def forward(self, x: torch.Tensor) -> Any:
            out = self.head(x.flatten(1))
            return (out, out) if self.training else out

    with pytest.raises(UserError, match="of 2 images the network returns tuple in training"):
        adopt(Auxiliary(), torch.zeros(1, *SHAPE))


def test_draws_from_the_global_generator_are_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3072, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(nn.functional.dropout(x.flatten(1), 0.5, self.training))

    net, before = Noisy(), torch.get_rng_state()
    with pytest.raises(UserError, match="draws from PyTorch's global generator in training"):
        adopt(net, torch.zeros(1, *SHAPE))
    assert torch.get_rng_state().equal(before)


def test_batch_norm_is_known_before_a_network_is_built() -> None:
    for name, wanted in (("resnet18", True), ("vit_b_32", False), ("convnext_tiny", False)):
        model: Any = OmegaConf.to_container(
            composed("model=torchvision", f"model.name={name}").model
        )
        assert has_batch_norm(model) is wanted


def test_weights_bring_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet's mean and std, and the size of the images; a wrong size is refused in a line."""
    cfg = composed("model=torchvision", "model.weights=IMAGENET1K_V1", "dataset=seqcifar100")
    apply(cfg, ["model.weights=IMAGENET1K_V1"])
    assert [*cfg.dataset.transform.mean] == [0.485, 0.456, 0.406]
    assert cfg.dataset.transform.resize == 224
    net = torchvision.models.resnet18()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: net.state_dict())
    made: Any = make_network(cfg.model, SHAPE, 7)
    assert made.conv1.weight.equal(net.conv1.weight) and head_of(made).out_features == 7
    found: Any = library.backbone_info(OmegaConf.to_container(cfg.model))  # type: ignore[arg-type]
    assert found["name"] == "torchvision resnet18 IMAGENET1K_V1" and len(found["sha256"]) == 64


OWN = '''
from torch import nn

class Small(nn.Module):
    """The user's own: no shape, an activation in place, dropout, and a head of another name."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(inplace=True))
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.last(self.drop(self.layers(x)))
'''
SCALE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(1, 4, 3), nn.Parameter(torch.ones(1, 1, 1))
        self.last = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.last((self.conv(x).relu() * self.scale).mean((2, 3)))
"""
GAIN = """    self.gain = nn.Parameter(torch.ones(width))

    """
YAML = """# A network of the user's
defaults:
  - /model_base
  - _self_
_target_: my_network.Small
_partial_: true
head: last
"""


def test_a_network_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class and one YAML file: trained with a curvature, loaded, refused without its head."""
    monkeypatch.setenv("CL_BENCH_CONFIG_DIR", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_network.py").write_text(OWN)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/small.yaml").write_text(YAML)
    few = ("dataset.tasks=2", "dataset.train_per_task=200", "tracking=none")
    words = (f"--config-dir={tmp_path / 'conf'}", "model=small", f"output_dir={tmp_path}", *few)
    run = cl_bench.run(*words, "method=osla")
    assert (run.metrics["ACC"] or 0) > 0.2 and "my_network" in run.record.code["files"]
    net: Any = run.network()
    assert isinstance(net.drop, Dropout) and not net.layers[2].inplace
    assert net(run.stream.tests[0].x / 255).argmax(1).equal(run.predict(run.stream.tests[0].x))
    with pytest.raises(UserError, match=r"model\.head=null: .* no linear layer head .* use one of"):
        cl_bench.run(*words, "model.head=null")
    with pytest.raises(UserError, match=r"model\.depth: no such key; model has width"):
        cl_bench.run(*words, "+model.depth=3")
    assert_changes_are_told(run, tmp_path / "my_network.py", *words[1:])
    monkeypatch.delitem(sys.modules, "my_network")
    (tmp_path / "my_network.py").rename(tmp_path / "elsewhere.py")
    with pytest.raises(
        UserError, match=r"code of the run cannot be imported .*my_network.*PYTHONPATH"
    ):
        cl_bench.load(run.folder).network()


def assert_changes_are_told(run: cl_bench.Run, file: Path, *words: str) -> None:
    """A network whose class was changed since is given out, with a warning, and so is its run."""
    text = file.read_text()
    file.write_text(text.replace("ReLU", "Tanh"))
    forget_sources()
    with pytest.warns(UserWarning, match="my_network changed since the run was made") as told:
        cl_bench.load(run.folder).predict(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match=r"done before by other code \(my_network differs\)"):
        cl_bench.run(*words, "method=osla", config_dir=file.parent / "conf")
    file.write_text(text)
    forget_sources()
    cl_bench.load(run.folder).network()


def test_a_curvature_that_does_not_fit_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No state stays behind, as for everything that is refused before the first step."""
    monkeypatch.setenv("CL_BENCH_CONFIG_DIR", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    code = OWN.replace("self.layers(x)", "self.layers(x) * self.gain")
    code = code.replace("def forward", GAIN + "def forward")
    (tmp_path / "my_gain.py").write_text("import torch" + code)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/gain.yaml").write_text(YAML.replace("my_network", "my_gain"))
    few = ("dataset.tasks=2", "dataset.train_per_task=20", "tracking=none")
    words = (f"--config-dir={tmp_path / 'conf'}", "model=gain", f"output_dir={tmp_path / 'runs'}")
    with pytest.raises(
        UserError,
        match=r"the network: Small .* parameter gain has the shape .* use curvature=diag_fisher",
    ):
        cl_bench.run(*words, *few, "method=osla")
    assert not list((tmp_path / "runs").rglob("seed0"))
    (tmp_path / "my_scale.py").write_text(SCALE)
    (tmp_path / "conf/model/scale.yaml").write_text(YAML.replace("my_network", "my_scale"))
    scaled = (words[0], "model=scale", words[2])
    with pytest.raises(UserError, match=r"give it as many dimensions .* such as \(1, 16, 1, 1\)"):
        cl_bench.run(*scaled, *few, "method=osla")
    parent = cl_bench.run(*words, *few, "method=finetune", "stream.first=1")
    with pytest.raises(UserError, match=r"no Kronecker factors for the network: Small"):
        cl_bench.run(*words, *few, "method=osla", continue_from=parent.folder)
    assert len(list((tmp_path / "runs").rglob("seed0"))) == 1


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "cl_bench.models.timm_networks", raising=False)
    with pytest.raises(UserError, match=r'timm is not installed; pip install -e "\.\[timm\]"'):
        check_config(composed("model=timm", "dataset=seqcifar100"))
