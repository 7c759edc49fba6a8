"""State to disk and back: everything a method may keep, atomically, without code in the file."""

from __future__ import annotations

import errno
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU, batch, learner, machine, method_for, mlp, resnet
from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.core.buffer import Balanced, Reservoir, Ring
from cl_bench.core.state import packed, unpacked
from cl_bench.curvature.diagonal import Diagonal
from cl_bench.engine import checkpoint


def through(value: Any, present: Any, where: Path) -> Any:
    checkpoint.save({"value": packed(value), "identity": {}}, where / "c.pt")
    loaded = checkpoint.load(where / "c.pt", CPU, {})
    assert loaded is not None
    return unpacked(loaded["value"], present)


def test_plain_values(tmp_path: Path) -> None:
    value = {"a": [1, (2.5, None)], 3: {"x", "y"}, "nested": {"b": True, "c": b"z"}}
    assert through(value, None, tmp_path) == value


def test_objects_of_ours(tmp_path: Path) -> None:
    value = (
        Diagonal(torch.arange(3.0)),
        {"rows": batch(4)},
        [batch(2)._replace(logits=torch.ones(2, 6))],
    )
    back = through(value, None, tmp_path)
    assert back[0].values.equal(value[0].values) and isinstance(back[0], Diagonal)
    assert back[1]["rows"].x.equal(value[1]["rows"].x) and back[1]["rows"].logits is None
    assert back[2][0].logits.eq(1).all()


@pytest.mark.parametrize("kind", [Reservoir, Balanced, Ring])
def test_buffers_go_on_as_if_never_stopped(kind: type, tmp_path: Path) -> None:
    rng = Generator().manual_seed(4)
    memory = kind(5, "all", False, rng)
    for _ in range(3):
        memory.add(batch(4))
    state = rng.get_state()
    twin_rng = Generator()
    twin = through(memory, kind(5, "all", False, twin_rng), tmp_path)
    twin_rng.set_state(state)
    assert twin.rng is twin_rng
    for one in (memory, twin):
        one.add(batch(4))
    assert memory.rows.y.equal(twin.rows.y) and memory.seen == twin.seen


def test_unknown_types_are_refused_with_their_name() -> None:
    with pytest.raises(TypeError, match=r"pathlib.*Path cannot go into a checkpoint"):
        packed({"x": Path("y")})
    with pytest.raises(TypeError, match="is a network; keep its parameters"):
        packed(torch.nn.Linear(1, 1))


def test_a_checkpoint_names_no_class_and_no_module() -> None:
    """Only names that classes gave themselves: none is imported or called for a file's sake."""
    with pytest.raises(KeyError, match="no class is stored as 'os:system'"):
        unpacked({"kind": "os:system", "state": {}}, None)
    assert packed(Diagonal(torch.ones(1)))["kind"] == "diagonal"
    methods = [method_for(name, learner(mlp())) for name in ("ewc", "er", "dlcft", "lwf")]
    assert "cl_bench" not in repr([checkpoint.state_of(method) for method in methods])


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: Any) -> None:
    """Not even in one whose checksum is right."""

    class Evil:
        def __reduce__(self) -> tuple:
            return (print, ("executed",))

    for name, content in (("a.pt", pickle.dumps(Evil(), 2)), ("b.pt", b"")):
        sha = hashlib.sha256(content).hexdigest().encode()
        (tmp_path / name).write_bytes(checkpoint.HEADER + sha + b"\n" + content)
        with pytest.raises(UserError, match=r"cannot be read .* nothing was changed"):
            checkpoint.load(tmp_path / name, CPU, {})
    assert "executed" not in capsys.readouterr().out


def test_a_damaged_file_gives_way_to_the_one_before(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "c.pt"
    for number in (1, 2):
        checkpoint.save({"value": number, "identity": {}}, file)
    whole = file.read_bytes()
    assert (checkpoint.load(file, CPU, {}) or {})["value"] == 2
    places = [0, len(checkpoint.HEADER), len(checkpoint.HEADER) + checkpoint.SHA_DIGITS]
    places += torch.linspace(100, len(whole) - 1, 20).int().tolist()
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert (checkpoint.load(file, CPU, {}) or {})["value"] == 1, place
        assert "c.pt: is" in capsys.readouterr().err
    file.write_bytes(whole[:40])
    assert (checkpoint.load(file, CPU, {}) or {})["value"] == 1
    assert "continues from c.previous" in capsys.readouterr().err
    file.with_suffix(".previous").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"c\.pt: is .*c\.previous: is not .* force=true starts over"
    ):
        checkpoint.load(file, CPU, {})
    assert file.read_bytes() == whole[:40]
    for name in ("c.pt", "c.previous"):
        (tmp_path / name).unlink()
    assert checkpoint.load(file, CPU, {}) is None


def test_a_checkpoint_of_another_run_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    checkpoint.save({"identity": {"config": "aaa", "seed": 0}}, file)
    with pytest.raises(UserError, match=r"c\.pt: is of config aaa, this run has config bbb"):
        checkpoint.load(file, CPU, {"config": "bbb", "seed": 0})
    with pytest.raises(UserError, match=r"c\.pt: is of seed 0, this run has seed 1"):
        checkpoint.load(file, CPU, {"config": "aaa", "seed": 1})
    checkpoint.save({"value": 1}, tmp_path / "d.pt")
    with pytest.raises(UserError, match="does not say of which run it is"):
        checkpoint.load(tmp_path / "d.pt", CPU, {})


@pytest.mark.parametrize("after", [0, 100, 1000])
def test_a_failed_save_leaves_the_last_one(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after so many bytes: the error names the file, and nothing is lost."""
    file = tmp_path / "c.pt"
    checkpoint.save({"value": 1, "identity": {}}, file)
    opened = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(
        Path, "open", lambda p, mode: Full(p, "w") if mode == "wb" else opened(p, mode)
    )
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoint.save({"value": torch.zeros(1000), "identity": {}}, file)
    assert caught.value.filename == str(file)
    monkeypatch.undo()
    assert (checkpoint.load(file, CPU, {}) or {})["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_bytes_of_state() -> None:
    made = learner(mlp())
    assert checkpoint.state_bytes(method_for("finetune", made)) == 0
    method = method_for("er", made, "buffer.capacity=20")
    method.memory.add(batch(3))
    assert checkpoint.state_bytes(method) == 20 * (16 + 8 + 8)


def test_another_layout_is_refused() -> None:
    """theta's order is the layout's: what was saved in one cannot go on in the other."""
    one, two = (
        method_for("finetune", learner(resnet(), machine(channels_last=last)))
        for last in (True, False)
    )
    with pytest.raises(UserError, match=r"written with runtime\.channels_last=true"):
        checkpoint.restore(two, checkpoint.state_of(one))


def test_a_checkpoint_of_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    checkpoint.save({"identity": {}}, file)
    file.write_bytes(file.read_bytes().replace(b"checkpoint 6 ", b"checkpoint 2 ", 1))
    with pytest.raises(UserError, match="format 2, this version of cl_bench reads 6"):
        checkpoint.load(file, CPU, {})


def test_a_part_that_is_missing_is_named() -> None:
    method = method_for("er", learner(mlp()))
    state = checkpoint.state_of(method)
    del state["method"]["memory"]["state"]["filled"]
    with pytest.raises(KeyError, match=r"Reservoir\.filled"):
        checkpoint.restore(method, state)
