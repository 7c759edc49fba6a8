"""Records that are damaged, hostile or unlike: named, left out, told as text; never obeyed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from records import change, runs_below, some, write

from cl_bench.base import escape
from cl_bench.base.exceptions import UserError
from cl_bench.config import errors
from cl_bench.report import __main__ as report
from cl_bench.report import formats
from cl_bench.report.commands import hash_of
from cl_bench.report.orders import order_summary
from cl_bench.report.rows import gather
from cl_bench.report.tables import tables
from cl_bench.results import sweeps
from cl_bench.results.page import Page
from cl_bench.results.records import read_all


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


WRONG = {
    "a null for a name": ("labels", {"dataset": "toy", "scenario": "data", "method": None}),
    "no name": ("labels", {"dataset": "toy", "scenario": "data"}),
    "an accuracy of 2": ("accuracy", [[0.5, None], [0.5, 2.0]]),
    "an infinite metric": ("metrics.BWT", float("inf")),
    "no number": ("metrics.ACC", float("nan")),
    "a text for a metric": ("metrics.FWT", "0.5"),
    "infinite seconds": ("measured.train_seconds", [1e308, 1e308]),
    "negative seconds": ("measured.eval_seconds", [-1.0]),
    "no seconds": ("measured.train_seconds", []),
    "memory in words": ("measured.peak_mib", "much"),
    "many bytes": ("state_bytes", 10**400),
    "many gradients": ("gradients_per_sample", 1e300),
    "infinite growth": ("method", {"growth": float("inf")}),
    "a task twice": ("stream.task_identities", [1, 1]),
    "a text for a task": ("stream.task_identities", ["0", "1"]),
    "sources as a list": ("code.files", ["a"]),
    "no sources": ("code", {}),
    "a backbone without data": ("backbone", {"name": "x"}),
    "a backbone with a list": ("backbone", {"name": "x", "data": [1]}),
    "a backbone without a model": ("backbone", {"name": "x", "data": {"name": "y"}}),
    "a backbone's accuracy in words": (
        "backbone",
        {"name": "x", "data": {"name": "y"}, "model": {}, "accuracy": "high"},
    ),
    "half a letter": ("labels.method", "\ud800"),
    "a deep config": ("config.a", nested(200)),
    "a config that is a list": ("config", []),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_right_is_named_by_its_place(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "er", "a", (0.5, 0.6))
    place, value = WRONG[kind]
    bad, good = sorted(tmp_path.rglob("record.json"))
    change(bad, place, value)
    found = read_all(tmp_path)
    (line,) = found.damaged
    assert line.startswith(f"{bad}: is damaged (") and "\n" not in line
    assert place.split(".")[0] in line or kind in ("a deep config", "half a letter")
    assert [folder for folder, _ in found.runs] == [good.parent]


def test_other_files_in_place_of_a_record(tmp_path: Path) -> None:
    """A pipe, a link to nowhere, a folder, no permission to enter: no report hangs or fails."""
    write(tmp_path, "er", "a", (0.5, 0.6, 0.7))
    pipe, link, folder = sorted(tmp_path.rglob("record.json"))
    for file in (pipe, link, folder):
        file.unlink()
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "nowhere")
    folder.mkdir()
    found = read_all(tmp_path)
    assert found.runs == [] and len(found.damaged) == 2
    assert found.damaged[0] == f"{pipe}: not a regular file"
    with pytest.raises(UserError, match=r"no finished run .* not in it: 2 damaged, the first: "):
        report.write_report([tmp_path], [], None, tmp_path)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some(tmp_path)
    closed, scandir = tmp_path / "toy/data/ewc", os.scandir

    def refusing(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(closed))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert read_all(tmp_path).damaged == [f"{closed}: Permission denied"]


def test_a_copy_with_other_results_is_named_and_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "er", "a", (0.5, 0.6))
    shutil.copytree(tmp_path / "toy", tmp_path / "z/same")
    shutil.copytree(tmp_path / "toy", tmp_path / "z/unlike")
    old = tmp_path / "z/unlike/data/er/a/seed0"
    change(old / "record.json", "metrics.ACC", 0.9)
    report.write_report([tmp_path], [], None, tmp_path)
    out, err = capsys.readouterr()
    assert "55.00 ± 7.07" in out and "1 with other results than the first copy" in out
    line = f"{old}: its results are not those of {tmp_path}/toy/data/er/a/seed0, the same run"
    assert err == f"left out: {line}\n"
    assert escape.markdown(line) in (tmp_path / "report.md").read_text()
    assert line in (tmp_path / "report.html").read_text()


def test_a_run_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    """On this machine; of another one nothing is known. A failed run's reason is kept."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    here, there = socket.gethostname(), "another machine"
    for name, host, pid in (("a", here, gone.pid), ("b", here, os.getpid()), ("c", there, 1)):
        (tmp_path / name).mkdir()
        status = {"state": "running", "host": host, "pid": pid}
        (tmp_path / name / "status.json").write_text(json.dumps(status))
    (tmp_path / "d").mkdir()
    failed = {"state": "failed", "error": "Traceback\n  line\nValueError: a reason"}
    (tmp_path / "d/status.json").write_text(json.dumps(failed))
    found = read_all(tmp_path)
    assert found.unfinished == {"killed": 1, "running": 2, "failed": 1}
    assert found.failures == [f"{tmp_path / 'd'}: ValueError: a reason"]


def test_a_study_is_not_an_unfinished_run(tmp_path: Path) -> None:
    for name, state in (("study", "done"), ("run", "running")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(json.dumps({"state": state}))
    (tmp_path / "study/page.md").write_text("")
    assert read_all(tmp_path).unfinished == {"running": 1}


def test_a_last_row_with_a_gap_has_no_order_disparity(tmp_path: Path) -> None:
    for place, order in enumerate(("A", "B")):
        write(tmp_path, "er", f"{place}", (0.5,), scenario__order=order)
    assert len(order_summary(runs_below(tmp_path)).rows) == 1
    change(next(tmp_path.rglob("0/seed0/record.json")), "accuracy", [[0.5, None], [None, 0.5]])
    assert order_summary(runs_below(tmp_path)).rows == []


LABELS = ["_er", "[er]", "*er", "# er", "a|b", "$x$", "<script>", "=1+1", "@SUM(1)", "\t=1", "-1"]
LABELS += ["日本語", "\u202eevil", "a\r\nb", "\x1b]0;title\x07", "![x](http://x.y)", "&lt;b&gt;"]


def test_labels_are_text_in_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of methods, their options and the data; on the terminal and in all files; so is the path."""
    root = tmp_path / "\x1b[31mred"
    for place, label in enumerate(LABELS):
        write(root, "er", f"a{place}", (0.5, 0.6), method__odd=label)
        for file in root.rglob(f"a{place}/seed*/record.json"):
            labels = {"dataset": "".join(LABELS), "scenario": "data", "method": label}
            alone = dict.fromkeys(labels, label)  # a section of its own
            change(file, "labels", alone if place >= 14 else labels)
    report.write_report([root], [], None, root)
    made = {file.suffix: file.read_bytes().decode() for file in root.glob("report.*")}
    assert {".html", ".md", ".csv", ".tex"} == made.keys()
    for text in (*made.values(), *capsys.readouterr()):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    body = made[".html"].partition("</style>")[2].rpartition("<script>")[0]
    assert "<script>" not in body and "&lt;script&gt;" in body and "&amp;lt;b&amp;gt;" in body
    lines = made[".md"].splitlines()
    assert not [line for line in lines if line.startswith(("# ", "!", "<"))]
    assert not re.search(r"(?<!\\)[<>\[\]`$]", made[".md"])
    grids = [line.replace("\\|", "").count("|") for line in lines if line.startswith("|")]
    assert len({*grids}) == 1
    rows = list(csv.DictReader(io.StringIO(made[".csv"], newline="")))
    assert len(rows) == len(LABELS)
    for row in rows:
        assert float(row["ACC"]) == pytest.approx(55)
        assert not [cell for cell in row.values() if cell[:1] in ("=", "+", "@", "\t", "\r")]
    assert {"'=1+1", "'-1", "'@SUM(1)"} <= {row["method"] for row in rows}
    cells = [line for line in made[".tex"].splitlines() if line.endswith(r"\\")]
    assert not [line for line in cells if line[0] in "[*"]


def test_markdown_and_cells() -> None:
    """Words stay readable: no escape within a key, none of a dash or a number."""
    assert escape.markdown("optimizer.weight_decay=1e-5") == "optimizer.weight_decay=1e-5"
    assert escape.markdown("_x_ www.a http://b") == r"\_x\_ www\.a http:\/\/b"
    assert escape.markdown("[a](b) $c$ &amp; `d`") == r"\[a\](b) \$c\$ \&amp; \`d\`"
    assert [escape.cell(v) for v in ("-", "-1", "=a", " =a", -1, "a")] == [
        *("-", "'-1", "'=a", "' =a", -1, "a")
    ]
    assert escape.visible({"\x1b": ["a\nb", 1]}) == {"\\x1b": ["a\\nb", 1]}


def test_an_error_is_one_line_whatever_it_names() -> None:
    error = UserError("/x/a\nb\x1b[31m: is a directory")
    assert errors.explain(error) == r"/x/a\nb\x1b[31m: is a directory"


def test_a_page_of_results_escapes_what_records_say(tmp_path: Path) -> None:
    rows = [{"variant": "=1|[x](y)", "ACC": -1.5}]
    text = Page("t", ["<b>"], rows, lambda figure: None).write(tmp_path)
    assert r"| =1\|\[x\](y) | -1.5 |" in text and r"- \<b\>" in text
    assert (tmp_path / "table.csv").read_text() == "variant,ACC\n'=1|[x](y),-1.5\n"


def test_files_of_a_row_may_have_unlike_tasks(tmp_path: Path) -> None:
    """Pooled by a key: the pictures are of those that are alike, numbers of all."""
    write(tmp_path, "er", "a", (0.5, 0.6), dataset__tasks=2)
    write(tmp_path, "er", "b", (0.5, 0.6), dataset__tasks=3)
    for file in tmp_path.rglob("b/seed*/record.json"):
        change(file, "accuracy", [[0.5] * 3] * 3)
        change(file, "initial", [0.1] * 3)
        change(file, "stream.task_identities", [0, 1, 2])
    (row,) = gather(read_all(tmp_path), ["dataset.tasks"])[:1]
    assert len(row.runs) == 2
    report.write_report([tmp_path], ["dataset.tasks"], None, tmp_path)
    numbers = formats.data_frame(tables(gather(read_all(tmp_path), ["dataset.tasks"]), None))
    assert numbers["ACC"].tolist() == pytest.approx([55, 55])


def swept(where: Path, *jobs: str) -> Path:
    """The folder of a sweep over the seeds 0 to 3, whose jobs left these files: "0/job.json"."""
    where.mkdir(parents=True)
    task = ["method=er", "seed=0,1,2,3"]
    content = {"hydra": {"sweeper": {"params": None}, "overrides": {"task": task}}}
    (where / "multirun.yaml").write_text(yaml.safe_dump(content))
    for job in jobs:
        (where / job).parent.mkdir()
        (where / job).write_text(json.dumps({"folder": "", "error": "no such key"}))
    return where


def test_what_sweeps_lack_with_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Done, stopped, refused and never started; done in a later sweep is done."""
    sweep = swept(tmp_path / ".sweeps/1", "0/job.json", "1/job.json", "2/failed.json")
    for seed, file in ((0, "record.json"), (1, "status.json")):
        (tmp_path / f"run{seed}").mkdir()
        sweeps.note_folder(sweep / str(seed), tmp_path / f"run{seed}")
        (tmp_path / f"run{seed}" / file).write_text('{"state": "stopped"}')
    found = read_all(tmp_path)
    lines = [str(job) for job in found.lacking]
    run = f"python -m cl_bench.run output_dir={tmp_path} method=er"
    assert lines == [
        f"stopped: {run} seed=1",
        f"refused: {run} seed=2 (no such key)",
        f"never started: {run} seed=3",
    ]
    later = swept(tmp_path / ".sweeps/2", "3/failed.json")
    (tmp_path / "run3").mkdir()
    (tmp_path / "run3/record.json").write_text("{}")
    (later / "3/failed.json").unlink()
    sweeps.note_folder(later / "3", tmp_path / "run3")
    lacking = read_all(tmp_path).lacking
    assert [job.words[1] for job in lacking] == ["seed=1", "seed=2"]
    assert [job.state for job in lacking] == ["stopped", "refused"], "by the sweep that began them"
    report._print_lacking(read_all(tmp_path).lacking)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"to drop jobs from this list (no result goes with them): rm -r {sweep} {later}"
    )
    (tmp_path / "run1/status.json").write_text('{"state": "running"}')
    report._print_lacking(read_all(tmp_path).lacking)
    assert "rm -r" not in capsys.readouterr().err, "a sweep may still be at work"


def test_a_sweeps_own_folder_of_options_is_in_its_commands(tmp_path: Path) -> None:
    """As Hydra wrote it down; whichever the report was given."""
    sweep = swept(tmp_path / ".sweeps/1", "0/failed.json")
    content = yaml.safe_load((sweep / "multirun.yaml").read_text())
    sources = [("conf", "main"), (str(tmp_path / "mine/conf"), "cl_bench"), ("", "schema")]
    content["hydra"]["runtime"] = {
        "config_sources": [{"path": path, "provider": by} for path, by in sources]
    }
    (sweep / "multirun.yaml").write_text(yaml.safe_dump(content))
    (job, *_) = read_all(tmp_path).lacking
    own = f"--config-dir={tmp_path}/mine/conf output_dir={tmp_path}"
    run = f"python -m cl_bench.run {own} method=er seed=0"
    assert str(job) == f"refused: {run} (no such key)"


def test_a_job_that_was_run_alone_is_not_lacking(tmp_path: Path) -> None:
    """As a reader of the report runs it: known by its config and seed."""
    swept(tmp_path / ".sweeps/1", "0/failed.json")
    assert len(report.lacking_jobs(read_all(tmp_path))) == 4
    name = hash_of(["method=er"])
    assert name is not None
    write(tmp_path, "er", name, (0.5, 0.6))  # seeds 0 and 1
    found = report.lacking_jobs(read_all(tmp_path))
    assert [job.words[-1] for job in found] == ["seed=2", "seed=3"]


def test_damaged_and_refused_sweeps_lack_nothing(tmp_path: Path) -> None:
    swept(tmp_path / ".sweeps/1")
    for number, text in enumerate(("", "hydra: [1]", "\x00", "hydra: {sweeper: {params: 3}}")):
        sweep = swept(tmp_path / f".sweeps/damaged{number}", "0/job.json")
        (sweep / "multirun.yaml").write_text(text)
    assert read_all(tmp_path).lacking == []
