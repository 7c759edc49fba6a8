"""The report: records to rows and tables, the options that differ, baselines, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from records import change, lines, some, write

from cl_bench.base.exceptions import UserError
from cl_bench.report import __main__ as report
from cl_bench.report import charts, formats
from cl_bench.report.quantities import ACC
from cl_bench.report.rows import gather
from cl_bench.report.runs import left_out
from cl_bench.report.tables import tables
from cl_bench.results.records import read_all


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return some(tmp_path)


def test_means_over_seeds(runs: Path) -> None:
    """60 +- 10 of 50, 60, 70; what sets configs apart; a search's trials stand apart."""
    own, search = tables(gather(read_all(runs)), None)
    many, single, ewc, joint = lines(own)
    assert many["options"] == "optimizer.lr=0.1" and many["ACC"] == "60.00 ± 10.00"
    assert many["n"] == "3" and many["BWT"] == "-30.00 ± 10.00" and many["train s"] == "3.0"
    assert single["options"] == "optimizer.lr=0.2" and single["ACC"] == "40.00"
    assert ewc["method"] == "ewc" and ewc["options"] == "optimizer.lr=0.1" and "FWT" not in ewc
    assert joint["later / first"] == "2.00" and joint["gradients"] == "2.0"
    assert search.section.title == "toy, data-incremental, validation split"
    numbers = formats.data_frame([own])
    assert list(numbers["ACC"]) == pytest.approx([60, 40, 40, 90])
    assert list(numbers["n"]) == [3, 1, 2, 2]
    assert list(numbers["ACC sd"].isna()) == [False, True, False, False]
    assert "60.00 ± 10.00" in formats.plain_text([own])
    assert "All rows: backbone=none." in own.note and "optimizer.lr=0.3" in search.note
    assert json.loads(str(numbers["config"][0]))["method.linear"] is True


def test_copies_of_a_run_count_once(runs: Path) -> None:
    shutil.copytree(runs / "toy", runs / "backup/toy")
    assert [len(row.runs) for row in gather(read_all(runs))] == [3, 1, 2, 2, 1]


def test_other_streams_are_other_tables(tmp_path: Path) -> None:
    """Two tasks are not twenty; where schedules differ, every row names its own."""
    write(tmp_path, "er", "a", (0.9,), dataset__tasks=2, schedule__epochs=1)
    write(tmp_path, "ewc", "b", (0.5,), dataset__tasks=2, schedule__epochs=5)
    write(tmp_path, "ewc", "c", (0.6,), dataset__tasks=20, schedule__epochs=1)
    two, twenty = tables(gather(read_all(tmp_path)), "er")
    assert [row.name for row in two.rows] == ["er schedule.epochs=1", "ewc schedule.epochs=5"]
    assert [row.name for row in twenty.rows] == ["ewc"] and twenty.baseline is None
    assert twenty.section.title == "toy, data-incremental, dataset.tasks=20"
    assert two.ranks(two.metrics[0]) == {0: 1, 1: 2} and twenty.ranks(twenty.metrics[0]) == {}


def test_a_row_names_the_size_of_the_memory_that_is_in_use(tmp_path: Path) -> None:
    """`per_class` takes the place of `capacity`, and this that of `per_task`."""
    sizes = {"a": (2000, 20), "b": (500, None), "c": (200, None)}
    for name, (capacity, per_class) in sizes.items():
        own = {"method__buffer__capacity": capacity, "method__buffer__per_class": per_class}
        write(tmp_path, "icarl", name, (0.5,), **own)
    for name, capacity in (("d", None), ("e", 50)):
        own = {"method__buffer__capacity": capacity, "method__buffer__per_task": 10}
        write(tmp_path, "agem", name, (0.5,), **own)
    (table,) = tables(gather(read_all(tmp_path)), None)
    options = {row.runs[0].hash: row.options for row in table.rows}
    assert options["a"] == "buffer.per_class=20"
    assert (options["b"], options["c"]) == ("buffer.capacity=500", "buffer.capacity=200")
    assert (options["d"], options["e"]) == ("buffer.per_task=10", "buffer.capacity=50")
    pooled = gather(read_all(tmp_path), ["buffer.capacity"])
    assert "buffer.capacity=2000" not in " ".join(row.options for row in pooled)


def test_best_and_second_are_of_rivals(runs: Path) -> None:
    """By what is printed: joint training has no place, nor one seed beside rows of several."""
    (own, _) = tables(gather(read_all(runs)), None)
    acc, bwt, forgetting = own.metrics
    assert own.ranks(acc) == own.ranks(bwt) == own.ranks(forgetting) == {0: 1, 2: 2}
    text = formats.markdown([own])
    assert (
        "| **60.00 ± 10.00** |" in text
        and "| 40.00 |" in text
        and "| _40.00 ± 14.14_ |" in text
        and "| 90.00 ± 0.00 |" in text
    )
    latex = formats.latex([own])
    assert r"er & optimizer.lr=0.1 & 3 & \textbf{\boldmath$60.00 \pm 10.00$}" in latex
    assert (
        r"\underline{$40.00 \pm 14.14$}" in latex
        and "joint & optimizer.lr=0.1 & 2 & $90.00" in latex
    )


def test_rows_of_chosen_keys_say_what_they_average(runs: Path) -> None:
    """Over seeds that all pooled configs have: of er 0.1 (seeds 0-2) and 0.2 (seed 0), one."""
    rows = [row for row in gather(read_all(runs), ["linear"]) if row.section.split == "test"]
    assert rows[0].options == "method.linear=true (over optimizer.lr=0.1|0.2)" and len(rows) == 3
    assert len(rows[0].runs) == 4 and rows[0].by_seed(ACC) == pytest.approx({0: 45})
    with pytest.raises(UserError, match=r"--by linaer: no .* did you mean method.linear\?"):
        gather(read_all(runs), ["linaer"])
    with pytest.raises(UserError, match=r"--by x: no config of these runs has it; keys are"):
        gather(read_all(runs), ["x"])
    write(runs, "lwf", "fff", (0.1,), dataset__split="class")
    with pytest.raises(UserError, match=r"may mean dataset.split or evaluation.split; write"):
        gather(read_all(runs), ["split"])


def test_classes_of_one_name_are_two_rows(tmp_path: Path) -> None:
    for name, target in (("a", "cl_bench.core.optim.SGD"), ("b", "torch.optim.SGD")):
        write(tmp_path, "er", name, (0.5,), optimizer___target_=target)
    assert [row.options for row in gather(read_all(tmp_path), ["optimizer"])] == [
        "optimizer=SGD [a]",
        "optimizer=SGD [b]",
    ]


def test_keys_that_come_with_a_target_are_left_out(tmp_path: Path) -> None:
    """Adam has betas, SGD has none; the learning rate, which both have, is named."""
    adam = {"optimizer___target_": "torch.optim.Adam", "optimizer__betas": [0.9, 0.999]}
    write(tmp_path, "er", "aaa", (0.5,), optimizer__lr=0.1, **adam)
    write(tmp_path, "er", "bbb", (0.5,), optimizer__lr=0.2, optimizer___target_="torch.optim.SGD")
    options = [row.options for row in gather(read_all(tmp_path))]
    assert options == ["optimizer=Adam optimizer.lr=0.1", "optimizer=SGD optimizer.lr=0.2"]


def test_a_baseline_is_one_row(runs: Path) -> None:
    own, search = tables(gather(read_all(runs)), "ewc")
    gains = [line["over ewc"] for line in lines(own)]
    assert gains[:3] == ["+15.00 [-48.53, 78.53] (n=2)", "+10.00 (n=1)", "-"]
    assert own.baseline is not None and search.baseline is not None
    (chosen, _) = tables(gather(read_all(runs)), "er optimizer.lr=0.2")
    assert chosen.baseline is chosen.rows[1]
    with pytest.raises(UserError, match=r"may be any of er optimizer.lr=0.1; er optimizer.lr=0.2"):
        tables(gather(read_all(runs)), "er")
    for wrong in ("gem", " "):
        with pytest.raises(UserError, match=r"no such row; methods: er, ewc, joint"):
            tables(gather(read_all(runs)), wrong)


def test_an_ambiguous_section_has_no_baseline(runs: Path) -> None:
    write(runs, "er", "fff", (0.2,), place="toy/task")
    own, other, _ = tables(gather(read_all(runs)), "er")
    assert own.baseline is None and "choose one of er optimizer.lr=0.1; er" in own.note
    assert other.baseline is other.rows[0] and "No differences" not in other.note


def test_the_command_writes_all_forms(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(runs), "--baseline", "ewc"])
    report.main()
    assert "toy, data-incremental\n" in capsys.readouterr().out
    assert {f.suffix for f in runs.glob("report.*")} == {".html", ".md", ".csv", ".tex"}


def test_the_page_draws_accuracy_along_the_way(runs: Path, tmp_path: Path) -> None:
    """Where a run was tested along the way; runs tested after other images are left out."""
    report.write_report([runs], [], "ewc", tmp_path)
    assert "over the training images" not in (tmp_path / "report.html").read_text()
    for seed, images in enumerate((10, 10, 20)):
        file = runs / f"toy/data/er/aaa/seed{seed}/record.json"
        change(file, "along", [[images, 0.5], [40, 0.25 + 0.1 * seed]])
    table, *_ = tables(gather(read_all(runs)), None)
    drawn: dict[str, Any] = {}
    with patch.object(charts, "_lines", lambda found, *_: drawn.update(found)):
        charts.curves_along(table.rows)
    ((images, values),) = drawn.values()
    assert images.tolist() == [10, 40]
    assert values.round(6).tolist() == [[50, 25], [50, 35]]
    report.write_report([runs], [], "ewc", tmp_path)
    assert "over the training images" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere: no such folder"),
        ([".", "--by", "x"], "--by x: no config of these runs has it"),
        ([".", "--baseline", "er"], "--baseline 'er': may be any of er"),
        ([".", "--out", "toy/data/er/aaa/seed0/record.json"], "--out toy/data/er/aaa/seed0/record"),
    ],
)
def test_a_wrong_option_ends_in_one_line(
    runs: Path,
    arguments: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setattr("sys.argv", ["report", *arguments])
    with pytest.raises(SystemExit) as caught:
        report.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith(f"error: {line}") and error.count("\n") == 1
    assert not list(runs.glob("report.*"))


DAMAGED = {
    "truncated": lambda text: text[:100],
    "null": lambda text: "null",
    "another version": lambda text: text.replace('"format": 2', '"format": 1'),
    "ragged": lambda text: text.replace("[0.9, null]", "[0.9]"),
    "a text for a number": lambda text: text.replace('"seed": 0', '"seed": "0"', 1),
    "no share": lambda text: text.replace("[0.9, null]", "[9.0, null]"),
    "no tasks": lambda text: text.replace('"task_identities": [0, 1]', '"task_identities": [0]'),
    "no seconds": lambda text: text.replace('"train_seconds": [1.0, 2.0]', '"train_seconds": null'),
    "deep": lambda text: '{"a":' * 5000,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_named_left_out_and_counted(
    kind: str,
    runs: Path,
) -> None:
    file = runs / "toy/data/er/aaa/seed0/record.json"
    text = file.read_text()
    file.write_text(DAMAGED[kind](text))
    assert file.read_text() != text
    found = read_all(runs)
    assert "not in it: 1 damaged" in report.gaps(found)
    (line,) = left_out(found)
    assert line.startswith(f"{file}: ")
    assert [len(row.runs) for row in gather(found)] == [2, 1, 2, 2, 1]


def test_the_command_names_what_is_damaged(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "toy/data/er/aaa/seed0/record.json").write_text("null")
    (runs / "toy/data/er/zzz").mkdir()
    (runs / "toy/data/er/zzz/status.json").write_text("{")
    monkeypatch.setattr("sys.argv", ["report", str(runs)])
    report.main()
    out, err = capsys.readouterr()
    assert "not in it: 2 damaged" in out and err.count("\n") == 2
    assert f"left out: {runs}/toy/data/er/aaa/seed0/record.json: " in err
    assert f"{runs}/toy/data/er/zzz/status.json: is damaged" in err


def test_names_come_from_the_record_and_links_are_followed_once(runs: Path) -> None:
    shutil.copytree(runs / "toy", runs / "copies/of/old/torture")
    (runs / "link").symlink_to(runs / "toy")
    (runs / "toy/data/loop").symlink_to(runs)
    rows = gather(read_all(runs))
    assert {row.section.dataset for row in rows} == {"toy"}
    assert [len(row.runs) for row in rows] == [3, 1, 2, 2, 1]


def test_a_methods_own_numbers_have_columns(tmp_path: Path) -> None:
    """`Method.capacity` of a method from anywhere; its growth is a metric already."""
    write(tmp_path, "er", "a", (0.5, 0.6))
    write(tmp_path, "mine", "b", (0.4, 0.5))
    for seed in (0, 1):
        file = tmp_path / f"toy/data/mine/b/seed{seed}/record.json"
        change(file, "method", {"anchors": 10 + 2 * seed, "growth": 0.5})
    (own,) = tables(gather(read_all(tmp_path)), None)
    found = {line["method"].split()[0]: line for line in lines(own)}
    assert found["mine"]["anchors"] == "11.0" and found["er"]["anchors"] == "-"
    assert found["mine"]["growth"] == "50.00 ± 0.00"
    assert "anchors" in formats.markdown([own])
    assert formats.data_frame([own])["anchors"].dropna().tolist() == [11.0]


CLEAN = {"stream___target_": "cl_bench.data.stream.sequential"}
BLURRY = {
    "stream___target_": "cl_bench.data.boundaries.blurry",
    "stream__blur": 0.1,
    "stream__first": None,  # an option that is not set is not shown
}


def test_streams_of_other_images_stand_apart(tmp_path: Path) -> None:
    """Hidden boundaries and joint training show the same images; a blurry stream does not."""
    write(tmp_path, "er", "aaa", (0.5,), **CLEAN)
    write(tmp_path, "er", "bbb", (0.4,), stream___target_="cl_bench.data.boundaries.online")
    write(tmp_path, "joint", "ccc", (0.9,), stream___target_="cl_bench.data.stream.joint")
    write(tmp_path, "er", "ddd", (0.3,), **BLURRY)
    blurry, clean = tables(gather(read_all(tmp_path)), None)
    assert blurry.section.title == "toy, data-incremental, stream=blurry"
    assert "stream=blurry stream.blur=0.1" in blurry.note and len(blurry.rows) == 1
    named = ["stream=sequential", "stream=online", "stream=joint"]
    assert [row.options for row in clean.rows] == named


def test_a_stream_that_all_rows_share_is_named_above_them(tmp_path: Path) -> None:
    write(tmp_path, "er", "aaa", (0.5,), stream___target_="cl_bench.data.boundaries.online")
    (table,) = tables(gather(read_all(tmp_path)), None)
    assert "stream=online" in table.note and table.rows[0].options == ""
    write(tmp_path, "joint", "bbb", (0.9,), stream___target_="cl_bench.data.stream.joint")
    (table,) = tables(gather(read_all(tmp_path)), None)
    assert "stream=online" in table.note and {row.options for row in table.rows} == {""}


def test_joint_training_does_not_make_other_rows_name_their_stream(tmp_path: Path) -> None:
    write(tmp_path, "er", "aaa", (0.5,), **CLEAN)
    write(tmp_path, "joint", "ccc", (0.9,), stream___target_="cl_bench.data.stream.joint")
    (table,) = tables(gather(read_all(tmp_path)), None)
    assert [row.options for row in table.rows] == ["", ""] and "stream" not in table.note


def test_what_a_run_went_on_from_is_always_named(tmp_path: Path) -> None:
    """Also where all rows of a method have it; `patience` stands above a table that shares it."""
    shared = {"schedule__patience": 2, "schedule__holdout": 0.1}
    write(tmp_path, "lwf", "aaa", (0.5,), continue_from="somewhere/seed${seed}", **shared)
    write(tmp_path, "finetune", "bbb", (0.4,), continue_from=None, **shared)
    change(tmp_path / "toy/data/lwf/aaa/seed0/record.json", "parent", {"hash": "abc", "seed": 0})
    (table,) = tables(gather(read_all(tmp_path)), None)
    assert [row.options for row in table.rows] == ["", "continue_from=abc"]
    assert "schedule.patience=2 schedule.holdout=0.1" in table.note
    write(tmp_path, "er", "ccc", (0.4,), schedule__patience=None, schedule__holdout=0.1)
    (table,) = tables(gather(read_all(tmp_path)), None)
    assert "holdout" not in table.note
    assert all("schedule.patience=" in row.options for row in table.rows)
