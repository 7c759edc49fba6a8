"""Backbones: written, found, loaded, refused in one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, batch, command, composed, finished, learner, resnet
from forks import Command
from PIL import Image
from torchvision.models import resnet18

from cl_bench.base.exceptions import UserError
from cl_bench.config.build import make_network
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash
from cl_bench.config.size import count_parameters
from cl_bench.models import imagenet, pretrained
from cl_bench.models.pretrained import Provenance
from cl_bench.models.resnet import TorchvisionResNet18
from cl_bench.results.terminal import describe_backbone

MODEL = {"_target_": "cl_bench.models.resnet.ResNet18", "width": 4, "activation": "relu"}
SEEN = {"mean": [0.0] * 3, "std": [1.0] * 3}
ACTIVE = ("model.activation=leaky_relu",)
FACTS = Provenance("toy", MODEL, SEEN, {"name": "toy"}, {}, 0.5, None, {})


def network(classes: int = 6, width: int = 4) -> Any:
    net: Any = resnet(classes, width=width)
    for name, buffer in net.named_buffers():
        buffer.uniform_(0.5, 1.5) if "var" in name else buffer.normal_()
    return net.eval()


@pytest.mark.parametrize("half", [False, True])
def test_a_backbone_comes_back(half: bool, tmp_path: Path) -> None:
    """All but the head, whose number of classes may be another one."""
    net, other, file = network(), network(classes=9), tmp_path / "a.safetensors"
    pretrained.save(net, FACTS, file, half)
    head = other.head.weight.detach().clone()
    pretrained.load(other, str(file), False)
    close = {"rtol": 2e-3, "atol": 2e-3} if half else {"rtol": 0.0, "atol": 0.0}
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(other.blocks(other.stem(x)), net.blocks(net.stem(x)), **close)  # type: ignore[arg-type]
    assert other.head.weight.equal(head)
    assert pretrained.provenance(str(file)) == FACTS
    assert json.loads(file.with_suffix(".json").read_text())["name"] == "toy"


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        check_config(composed("dataset=seqcifar100", *overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_are_one_line_before_any_data(tmp_path: Path) -> None:
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    pretrained.save(network(), FACTS, file, False)
    other.write_bytes(b"no tensors")
    assert "there are" in refusal("model.pretrained=nowhere")
    assert "not written by scripts/pretrain.py" in refusal(f"model.pretrained={other}")
    assert "model.width=20: model.pretrained=" in refusal(f"model.pretrained={file}")
    told = refusal(
        f"model.pretrained={file}", "model.width=4", "dataset.transform.std=[2.0,2.0,2.0]"
    )
    assert "use dataset.transform.std=[1.0,1.0,1.0]" in told
    told = refusal("model=resnet18", "model.pretrained=auto", "model.width=7")
    assert "no backbone comes with" in told and "imagenet1k" in told
    assert "model.norm=folded" in refusal("model.linearize=true")
    assert "model.norm=folded" in refusal("model.head_mode=head_only")
    folded = "model.norm=folded", "model.linearize=true", "model.head_mode=linearized"
    assert "model.head_init=same" in refusal(*folded, "model.head_init=zero")
    assert "needs model.linearize=true" in refusal("model.head_mode=linearized")
    headed = "model=resnet18_224", "model.head_init=pretrained"
    assert "come with a head, and model.pretrained is None" in refusal(*headed)
    assert "must be one of zero, same" in refusal("model.head_init=pretrained")


def test_another_activation_is_told() -> None:
    facts = {"name": "a", "model": MODEL, "data": {"name": "b"}, "accuracy": 0.5}
    assert "its activation was relu, now it is tanh" in describe_backbone(
        facts, {"activation": "tanh"}
    )
    assert describe_backbone(facts, MODEL) == "a, pre-trained on b (test accuracy 50.00 %)"


def test_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    pretrained.save(network(), FACTS, file, False)
    with pytest.raises(UserError, match="the network is another one"):
        pretrained.load(network(width=5), str(file), False)


def published(hub: Path, content: bytes) -> Path:
    """A file at torch hub's path for torchvision's ResNet-18."""
    file = hub / "checkpoints" / imagenet.RESNET18.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def accept(sha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a file of this hash for torchvision's ResNet-18."""
    weights = replace(imagenet.RESNET18, sha256=sha)
    monkeypatch.setitem(imagenet.WEIGHTS, "imagenet1k", weights)


def test_torchvisions_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From torch's cache; where they cannot be had, one line says where to put them."""
    theirs = resnet18(num_classes=1000)
    held = {
        k: torch.randn_like(v) if v.is_floating_point() else v
        for k, v in theirs.state_dict().items()
    }
    packed = io.BytesIO()
    torch.save(held, packed)
    sha = hashlib.sha256(packed.getvalue()).hexdigest()
    accept(sha, monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = published(tmp_path, packed.getvalue())
    net: Any = TorchvisionResNet18((3, 64, 64), 5, "leaky_relu", "zero")
    pretrained.load(net, "imagenet1k", False)
    assert net.net.layer4[1].conv2.weight.equal(held["layer4.1.conv2.weight"])
    assert net.net.fc.weight.eq(0).all()
    assert pretrained.backbone_info("imagenet1k")["sha256"] == sha
    with pytest.raises(UserError, match="has 1000 classes, the data has 5; use"):
        pretrained.load(net, "imagenet1k", True)
    whole: Any = TorchvisionResNet18((3, 64, 64), 1000, "leaky_relu", "pretrained")
    pretrained.load(whole, "imagenet1k", True)
    assert whole.net.fc.weight.equal(held["fc.weight"])

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    file.unlink()
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"f37072fd\.pth cannot be downloaded .* put it at"):
        pretrained.load(net, "imagenet1k", False)


def test_code_in_place_of_torchvisions_weights_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hash is checked before anything is read; and a file of the right hash runs no code."""

    class Evil:
        def __reduce__(self) -> tuple:
            return (print, ("executed",))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net: Any = TorchvisionResNet18((3, 64, 64), 5, "leaky_relu", "zero")
    content = pickle.dumps(Evil(), 2)
    published(tmp_path, content)
    with pytest.raises(UserError, match=r"is not the published .* remove it"):
        pretrained.load(net, "imagenet1k", False)
    accept(hashlib.sha256(content).hexdigest(), monkeypatch)
    with pytest.raises(pickle.UnpicklingError):
        pretrained.load(net, "imagenet1k", False)
    assert "executed" not in capsys.readouterr().out


def test_the_shipped_backbone_fits_and_says_where_it_is_from() -> None:
    node = composed("dataset=seqcifar100", "method=dlcft").model
    name = pretrained.resolve_name({str(k): v for k, v in node.items()})
    assert name is not None
    facts = pretrained.provenance(name)
    assert facts.accuracy is not None and facts.accuracy > 0.8
    assert {"sha256", "name", "train_images"} <= set(facts.data) and facts.commit
    assert "/" not in json.dumps(facts.data).replace("{train,test}/<class>/*", "")
    net = make_network(node, (3, 32, 32), 100)
    assert sum(p.numel() for p in net.parameters()) > 1_000_000


def test_a_network_is_pretrained_then_used(tmp_path: Path) -> None:
    """By the script as a user calls it; typed again it repeats nothing."""
    rng = np.random.default_rng(0)
    for split, label, i in [(s, c, i) for s in ("train", "val") for c in "ab" for i in range(8)]:
        place = tmp_path / "images" / split / label
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(100 * (label == "a"), 100 + 100 * (label == "a"), (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    file = tmp_path / "made.safetensors"
    data = f"data_dir={tmp_path}", "dataset=folder", "dataset.source.size=8"
    plain = "dataset.transform.mean=[0.0,0.0,0.0]", "dataset.transform.std=[1.0,1.0,1.0]"
    small = "model.width=4", "tracking=none", "schedule.batch_size=4"
    script = [str(ROOT / "scripts/pretrain.py"), "--out", str(file)]
    call = [*script, *data, *plain, *small, "schedule.epochs=2", f"output_dir={tmp_path / 'out'}"]

    def pretrain(*more: str) -> tuple[int, str, str]:
        return finished(Command([*call, *more], ROOT, dict(os.environ)))

    assert pretrain()[0] == 0
    code, out, err = pretrain()
    assert code == 0, err
    assert "not repeated" in out and "use model.pretrained=" in out
    code, _, err = pretrain("dataset.tasks=2")
    assert code == 2 and "a backbone needs dataset.tasks=1" in err
    leak = "method=finetune", f"model.pretrained={file}", "scenario=data", "dataset.tasks=1"
    code, _, err = finished(command(*data, *plain, *small, *ACTIVE, *leak, where=tmp_path / "leak"))
    assert code == 2 and "it was trained on this very data set" in err
    for image in (tmp_path / "images/train/a").glob("[0-3].png"):
        image.unlink()
    use = "method=dlcft", f"model.pretrained={file}", "scenario=data", "dataset.tasks=2"
    code, out, err = finished(
        command(*data, *plain, *small, *use, "schedule.epochs=1", where=tmp_path / "runs")
    )
    assert code == 0, err
    assert "backbone: made, pre-trained on images (test accuracy" in out
    assert "activation" not in out
    (record,) = (tmp_path / "runs").rglob("record.json")
    assert json.loads(record.read_text())["backbone"]["model"]["width"] == 4


CONV5 = ("model=conv5", "model.channels=[4,8]", "model.hidden=[12]")


def conv5(*overrides: str) -> Any:
    torch.manual_seed(0)
    return make_network(composed(*CONV5, *overrides).model, (3, 8, 8), 6)


def test_a_part_of_a_network_stays_fixed() -> None:
    """Its parameters are no part of theta; the others have the gradient that they had."""
    found = {}
    for fixed in ("null", "convs"):
        made = learner(conv5("model.norm=folded", f"model.fixed={fixed}"))
        made.gradient(batch(12, 6, (3, 8, 8)))
        net: Any = made.net
        found[fixed] = made.flat.grad.clone()
        convs = {name: p.clone() for name, p in net.convs.named_parameters()}
        made.step()
        moved = any(not p.equal(convs[n]) for n, p in net.convs.named_parameters())
        assert moved == (fixed == "null")
    count = found["convs"].numel()
    assert count < found["null"].numel() and found["convs"].any()
    torch.testing.assert_close(found["convs"], found["null"][-count:])
    words = "dataset=seqcifar100", *CONV5, "model.norm=folded"
    folded, fixed = composed(*words), composed(*words, "model.fixed=convs")
    assert config_hash(fixed) != config_hash(folded)
    assert count_parameters(fixed.model, (3, 8, 8), 6) == count


def test_parts_that_cannot_be_fixed() -> None:
    with pytest.raises(
        UserError, match=r"model\.fixed=conv: .* there are convs, layers, head, and"
    ):
        conv5("model.norm=folded", "model.fixed=conv")
    with pytest.raises(
        UserError, match=r"model\.fixed=convs\.1: the network has no such part with p"
    ):
        conv5("model.norm=folded", "model.fixed=convs.1")
    assert "model.fixed=convs: batch norm's" in refusal(*CONV5, "model.fixed=convs")
    linear = "model.linearize=true", "model.norm=folded", "model.activation=leaky_relu"
    assert "fixed=convs: model.linearize=true does not go" in refusal(
        *CONV5, "model.fixed=convs", *linear
    )


def test_a_backbone_of_a_part(tmp_path: Path) -> None:
    """Only the part is stored and loaded; layers after it may have another width."""
    net, file = conv5(), tmp_path / "convs.safetensors"
    kind = {"_target_": "cl_bench.models.conv5.Conv5", "last": "linear"}
    fixing = kind | {"channels": [4, 8], "activation": "relu"}
    pretrained.save(net, replace(FACTS, model=fixing, part="convs"), file, half=False)
    torch.manual_seed(1)
    cfg = composed(*CONV5, "model.hidden=[5]", f"model.pretrained={file}")
    other: Any = make_network(cfg.model, (3, 8, 8), 6)
    assert other.layers[0].weight.shape[0] == 5
    for name, value in net.convs.state_dict().items():
        assert other.convs.state_dict()[name].equal(value), name
    told = refusal(*CONV5[:1], f"model.pretrained={file}")
    assert "model.channels=[16, 32, 64, 128, 256]: model.pretrained=" in told
