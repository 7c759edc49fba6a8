"""State to disk and back: everything a method may keep, atomically, without code in the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU, batch, learner, machine, method_for, mlp, resnet
from torch import Generator

from cl_bench import checkpoint
from cl_bench.buffer import Balanced, Reservoir, Ring
from cl_bench.curvature.diagonal import Diagonal
from cl_bench.types import UserError


def through(value: Any, present: Any, where: Path) -> Any:
    checkpoint.save({"value": checkpoint.encode(value)}, where / "c.pt")
    loaded = checkpoint.load(where / "c.pt", CPU)
    assert loaded is not None
    return checkpoint.decode(loaded["value"], present)


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
    memory = kind(5, "all", rng)
    for _ in range(3):
        memory.add(batch(4))
    state = rng.get_state()
    twin_rng = Generator()
    twin = through(memory, kind(5, "all", twin_rng), tmp_path)
    twin_rng.set_state(state)
    assert twin.rng is twin_rng
    for one in (memory, twin):
        one.add(batch(4))
    assert memory.rows.y.equal(twin.rows.y) and memory.seen == twin.seen


def test_unknown_types_are_refused_with_their_name() -> None:
    with pytest.raises(TypeError, match=r"pathlib.*Path cannot go into a checkpoint"):
        checkpoint.encode({"x": Path("y")})
    with pytest.raises(TypeError, match=r"torch.*Linear cannot go into a checkpoint"):
        checkpoint.encode(torch.nn.Linear(1, 1))


def test_a_checkpoint_cannot_name_foreign_classes() -> None:
    with pytest.raises(ValueError, match="os, which is not of this package"):
        checkpoint.decode({"__class__": "os:system", "fields": {}}, None)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: Any) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (print, ("executed",))

    (tmp_path / "c.pt").write_bytes(pickle.dumps(Evil()))
    assert checkpoint.load(tmp_path / "c.pt", CPU) is None
    assert "executed" not in capsys.readouterr().out


def test_a_torn_file_gives_way_to_the_one_before(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "c.pt"
    for number in (1, 2):
        checkpoint.save({"value": number}, file)
    assert checkpoint.load(file, CPU) == {"value": 2}
    file.write_bytes(file.read_bytes()[:40])
    assert checkpoint.load(file, CPU) == {"value": 1}
    assert "c.pt: unreadable" in capsys.readouterr().out
    file.write_bytes(b"")
    file.with_suffix(".previous").unlink()
    assert checkpoint.load(file, CPU) is None


def test_a_failed_save_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.pt"
    checkpoint.save({"value": 1}, file)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save({"value": 2}, file)
    monkeypatch.undo()
    assert checkpoint.load(file, CPU) == {"value": 1}


def test_bytes_of_state() -> None:
    made = learner(mlp())
    assert checkpoint.nbytes(method_for("finetune", made)) == 0
    method = method_for("er", made, "buffer.capacity=20")
    method.memory.add(batch(3))
    assert checkpoint.nbytes(method) == 20 * (16 + 8 + 8)


def test_another_layout_is_refused() -> None:
    """theta's order is the layout's: what was saved in one cannot go on in the other."""
    one, two = (
        method_for("finetune", learner(resnet(), machine(channels_last=last)))
        for last in (True, False)
    )
    with pytest.raises(UserError, match=r"written with runtime\.channels_last=true"):
        checkpoint.restore(two, checkpoint.state_of(one))


def test_another_versions_checkpoint_is_refused() -> None:
    method = method_for("finetune", learner(mlp()))
    old = checkpoint.state_of(method)
    del old["evaluated"]
    with pytest.raises(UserError, match="written by another version of cl_bench"):
        checkpoint.restore(method, old)
