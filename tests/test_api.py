"""cl_bench from Python: a run is made, loaded, asked for predictions, and compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT

import cl_bench
from cl_bench.engine.host import RunHost
from cl_bench.report.__main__ import write_report

SMALL = ("dataset.tasks=3", "dataset.train_per_task=200", "tracking=none", "runtime.threads=1")
CLASS_SPLIT = ("dataset=seqmnist5k", "dataset.tasks=5", "dataset.train_per_task=200")


def made(where: Path, *overrides: str, **values: Any) -> cl_bench.Run:
    return cl_bench.run(*SMALL, *overrides, output_dir=str(where), **values)


def accuracies(run: cl_bench.Run, named: bool) -> list[float]:
    """The share of each task's test images that `predict` gets right, with the task or without."""
    tests = run.stream.tests
    found = [run.predict(test.x, test.id if named else None) == test.y for test in tests]
    return [hits.double().mean().item() for hits in found]


def test_a_run_is_that_of_the_command(tmp_path: Path) -> None:
    run = made(tmp_path, "method=er", "optimizer.lr=0.1", seed=3)
    assert run.record.seed == 3 and run.config.optimizer.lr == 0.1
    assert run.folder.parts[-5:-2] == ("pmnist5k", "data", "er") and run.folder.name == "seed3"
    stamp = (run.folder / "record.json").stat().st_mtime_ns
    command = [sys.executable, "-m", "cl_bench.run", *SMALL, "method=er", "optimizer.lr=0.1"]
    done = subprocess.run(
        [*command, "seed=3", f"output_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert "not repeated" in done.stdout, done.stderr
    again = made(tmp_path, "method=er", "optimizer.lr=0.1", seed=3)
    assert (again.folder / "record.json").stat().st_mtime_ns == stamp
    assert again.record == run.record
    matrix = run.accuracy
    assert matrix.iloc[-1].mean() == pytest.approx(run.metrics["ACC"])
    assert list(matrix.index) == ["initial", "task_0", "task_1", "task_2"]
    csv = pd.read_csv(run.folder / "accuracy.csv", index_col="after")
    assert (run.folder / "accuracy.csv").read_text() == run.accuracy.to_csv()
    pd.testing.assert_frame_equal(csv, matrix, check_exact=False)
    assert "er on pmnist5k, data-incremental, seed 3: ACC " in repr(run)


def test_predictions_are_those_that_were_tested(tmp_path: Path) -> None:
    run = made(tmp_path, "method=finetune")
    assert accuracies(run, named=False) == pytest.approx(list(run.accuracy.iloc[-1]))
    assert accuracies(run, named=True) == accuracies(run, named=False)
    x = run.stream.tests[0].x[:4]
    assert torch.equal(run.predict(x.numpy()), run.predict(x))
    logits = run.network()(x / 255)
    torch.testing.assert_close(run.logits(x), logits)
    assert run.class_names == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_classes_compete_as_the_scenario_says(scenario: str, tmp_path: Path) -> None:
    options = (f"scenario={scenario}", *CLASS_SPLIT)
    run = made(tmp_path, "method=finetune", *options)
    assert accuracies(run, named=True) == pytest.approx(list(run.accuracy.iloc[-1]))
    test = run.stream.tests[1]
    live = torch.isfinite(run.logits(test.x[:1], 1))[0]
    assert live.nonzero().flatten().tolist() == ([2, 3] if scenario == "task" else [*range(10)])
    if scenario == "class":
        assert torch.equal(run.predict(test.x), run.predict(test.x, 1))
    else:
        with pytest.raises(cl_bench.UserError, match=r"task: classes compete within .*\(0 to 4\)"):
            run.predict(test.x)


def test_a_method_with_a_network_for_each_task(tmp_path: Path) -> None:
    run = made(tmp_path, "method=independent", "scenario=task", *CLASS_SPLIT)
    assert accuracies(run, named=True) == pytest.approx(list(run.accuracy.iloc[-1]))
    with pytest.raises(cl_bench.UserError, match=r"a network for each task; name one \(0 to 4\)"):
        run.network()
    with pytest.raises(cl_bench.UserError, match="task=5: the run has the tasks 0 to 4"):
        run.network(5)


def test_a_linearised_folded_network_needs_no_backbone(tmp_path: Path) -> None:
    """Everything that it predicts with is in the file of the network; loading draws no number."""
    options = ("dataset=pmnist32", "dataset.source.of=mnist5k", "model=reduced_resnet18")
    backbone = ("backbone=shipped", "model.norm=folded", "model.linearize=true")
    few = ("dataset.train_per_task=40", "evaluation.split=val", "schedule.epochs=1")
    run = made(tmp_path, "method=finetune", *options, *backbone, *few)
    before = torch.get_rng_state()
    assert accuracies(run, named=True) == pytest.approx(list(run.accuracy.iloc[-1]))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_another_kind_are_refused(tmp_path: Path) -> None:
    run = made(tmp_path, "method=finetune")
    for wrong in (torch.rand(2, 1, 28, 28), torch.zeros(1, 28, 28).byte(), [[1, 2]]):
        with pytest.raises(cl_bench.UserError, match=r"wanted are raw pixels \(N, 1, 28, 28\)"):
            run.predict(wrong)


REFUSED: dict[tuple[str, ...], str] = {
    ("method=nope",): "method=nope: no such method; there are",
    ("seed=-1",): "seed=-1: must be at least 0",
    (
        "optimizer.lrr=3",
    ): "optimizer.lrr: no such key of the class SGD .did you mean lr.*; there are lr",
    ("method=er,ewc",): "several values are a sweep",
    ("experiment=emcl/ablation",): "this experiment is a sweep",
    ("study=taylor_error",): "a study is made by python -m",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_wrong_is_refused_in_the_commands_words(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(cl_bench.UserError, match=REFUSED[words]) as caught:
        cl_bench.run(*words, output_dir=str(tmp_path))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path, "method=finetune")
    with pytest.raises(cl_bench.UserError, match=r"lists the 1 below it"):
        cl_bench.load(tmp_path)
    with pytest.raises(cl_bench.UserError, match=r"no finished run in this folder"):
        cl_bench.load(tmp_path / "nowhere")
    (run.folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(cl_bench.UserError, match=r"model\.safetensors: is damaged"):
        cl_bench.load(run.folder).network()
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(cl_bench.UserError, match=r"save_network=false"):
        cl_bench.load(run.folder).network()
    (run.folder / "record.json").write_text("{")
    with pytest.raises(cl_bench.UserError, match=r"record\.json: is damaged"):
        cl_bench.load(run.folder)


def test_a_table_of_all_runs(tmp_path: Path) -> None:
    """Finished, stopped, failed and damaged ones; and the report's numbers."""
    runs = [made(tmp_path, "method=finetune", seed=seed) for seed in (0, 1)]
    made(tmp_path, "method=er", "optimizer.lr=0.1")
    damaged = made(tmp_path, "method=ewc")
    (damaged.folder / "record.json").write_text("{}")
    for state in ("stopped", "failed"):
        folder = tmp_path / f"pmnist5k/data/si/{state}/seed7"
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"state": state, "error": "no luck"}))
    (tmp_path / "pmnist5k/data/si/stopped/seed7/config.yaml").write_text("optimizer: {lr: 0.5}\n")
    (tmp_path / "pmnist5k/data/si/failed/seed7/config.yaml").write_text("{")
    table = cl_bench.runs(tmp_path)
    assert sorted(table["state"]) == ["damaged", "done", "done", "done", "failed", "stopped"]
    first = table[table["folder"] == str(runs[0].folder)].iloc[0]
    assert first["ACC"] == runs[0].metrics["ACC"] and first["seed"] == 0
    assert first["optimizer.lr"] == 0.03 and first["gradients"] == 1.0
    stopped = table[table["state"] == "stopped"].iloc[0]
    assert (stopped["method"], stopped["seed"], stopped["optimizer.lr"]) == ("si", 7, 0.5)
    failed = table[table["state"] == "failed"].iloc[0]
    assert failed["error"] == "no luck" and failed["hash"] == "failed"
    compared = cl_bench.compare(tmp_path, by="optimizer.lr", baseline="finetune")
    write_report([tmp_path], ["optimizer.lr"], "finetune", tmp_path)
    written = pd.read_csv(tmp_path / "report.csv")
    assert list(written["ACC"]) == pytest.approx(list(compared["ACC"]))
    acc = [100 * run.metrics["ACC"] for run in runs]  # type: ignore[operator]
    assert compared.set_index("method").loc["finetune", "ACC"] == pytest.approx(sum(acc) / 2)
    with pytest.raises(cl_bench.UserError, match="no such folder"):
        cl_bench.runs(tmp_path / "nowhere")


def test_an_interrupt_keeps_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call continues it, and the numbers are those of a run that was not interrupted."""
    whole = made(tmp_path / "whole", "method=er")
    advance, steps = RunHost.advance, iter(range(1000))

    def interrupted(host: RunHost, count: int) -> None:
        advance(host, count)
        if next(steps) == 30:  # in the second of three tasks of 20 steps
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunHost, "advance", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "parts", "method=er")
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(cl_bench.runs(tmp_path / "parts")["state"]) == ["stopped"]
    again = made(tmp_path / "parts", "method=er")
    assert again.record.theta_sha256 == whole.record.theta_sha256
    assert next(steps) == 60, "31 steps before the interrupt, and the other 29 after it"


def test_each_test_image_counts_the_same_where_tasks_are_unequal(tmp_path: Path) -> None:
    options = (*CLASS_SPLIT, "dataset.tasks=[4,3,3]", "evaluation.predictions=each")
    run = made(tmp_path, "method=er", "scenario=class", *options)
    shares = []
    for after in range(3):
        found = run.predictions(after=after)
        shares.append((found["label"] == found["predicted"]).mean())
    assert run.metrics["ACC_images"] == pytest.approx(shares[-1])
    assert run.metrics["AIA_images"] == pytest.approx(sum(shares) / 3)
    assert run.metrics["ACC_images"] != run.metrics["ACC"]


@pytest.mark.usefixtures("pictures")
def test_predictions_are_kept_and_confusion_follows(tmp_path: Path) -> None:
    options = ("scenario=class", *CLASS_SPLIT, "evaluation.predictions=each")
    run = made(tmp_path / "runs", "method=er", *options, figures=False)
    found = run.predictions()
    rows = found.assign(right=found["label"] == found["predicted"])
    right = rows.pivot_table(index="task", values="right")["right"]
    assert list(right) == pytest.approx(list(run.accuracy.iloc[-1]))
    x = torch.cat([test.x for test in run.stream.tests])
    logits = run.logits(x)
    assert found["predicted"].tolist() == logits.argmax(1).tolist()
    probability = logits.softmax(1).max(1).values.numpy()
    assert found["probability"].to_numpy() == pytest.approx(probability, abs=1e-5)
    counts = run.confusion()
    by_hand = [
        [((found.label == i) & (found.predicted == j)).sum() for j in range(10)] for i in range(10)
    ]
    assert counts.to_numpy().tolist() == by_hand
    assert list(counts.columns) == run.class_names and counts.to_numpy().sum() == len(x)
    written = pd.read_csv(run.folder / "confusion.csv", index_col=0)
    assert written.to_numpy().tolist() == by_hand
    shares = pd.read_csv(run.folder / "class_accuracy.csv")["accuracy"].tolist()
    assert shares == pytest.approx([by_hand[k][k] / sum(by_hand[k]) for k in range(10)])
    assert list(run.class_accuracy()["accuracy"]) == pytest.approx(shares)
    images = run.class_accuracy(after=0)["images"].tolist()
    assert sum(images) == len(run.predictions(after=0))
    tasks = pd.read_csv(run.folder / "task_confusion.csv", index_col=0).to_numpy()
    same = (found["label"] // 2 == found["predicted"] // 2).sum()
    assert tasks.trace() == same and tasks.sum() == len(x)
    assert not (run.folder / "confusion.png").exists(), "figures=false"
    drawn = made(tmp_path / "runs", "method=er", *options, figures=True)
    assert drawn.record == run.record, "it is drawn, and not made again"
    assert {"accuracy.png", "acc.png", "task_confusion.png"} <= {*os.listdir(run.folder)}
    first = run.predictions(after=0)
    assert set(first["task"]) == {0}, "the next task's classes do not compete yet"
    assert (run.folder / "confusion.png").stat().st_size > 1000
    write_report([tmp_path / "runs"], [], None, tmp_path / "runs")
    assert "confusion matrix of er" in (tmp_path / "runs/report.html").read_text()
    (run.folder / "predictions/task_4.npz").write_bytes(b"PK")
    with pytest.raises(cl_bench.UserError, match=r"task_4\.npz: is damaged"):
        run.predictions()
    with pytest.raises(cl_bench.UserError, match=r"task_4\.npz: is damaged; force=true makes"):
        made(tmp_path / "runs", "method=er", *options, figures=True)


def test_what_goes_on_between_the_steps_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cl_bench.engine.host.NEWS_SECONDS", -1.0)
    made(tmp_path, "method=ewc", "dataset.tasks=2")
    printed = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert printed[0] == "tests before training"
    wanted = ["training on task 0", "task 0 trained; ", "tests after task 0", "task 0 learned, "]
    assert all(line.startswith(start) for line, start in zip(printed[1:5], wanted, strict=True))


def test_without_the_option_nothing_is_kept(tmp_path: Path) -> None:
    """The config's hash is the same as before there was the option."""
    run = made(tmp_path, "method=finetune")
    with pytest.raises(cl_bench.UserError, match=r"make the run with evaluation\.predictions=true"):
        run.predictions()
    kept = made(tmp_path, "method=finetune", "evaluation.predictions=true")
    assert kept.record.hash != run.record.hash and kept.record.accuracy == run.record.accuracy
    assert len(kept.predictions()) == 3 * 1000
    with pytest.raises(cl_bench.UserError, match=r"evaluation\.predictions=each"):
        kept.predictions(after=0)
    names = {path.name for path in run.folder.iterdir()}
    assert not names & {"predictions", "confusion.csv"}


def test_a_schedule_of_the_first_and_of_later_tasks(tmp_path: Path) -> None:
    """Two epochs, then one; and a run that is stopped in the first task goes on as it was."""
    options = ("schedule.epochs=[2,1]", "schedule.annealing=milestones", "schedule.clip=0.5")
    run = made(tmp_path, "method=finetune", *options, "schedule.ramp=0.5")
    assert run.record.gradients_per_sample == pytest.approx(4 / 3)
    plain = made(tmp_path, "method=finetune", "schedule.epochs=[2,1]")
    assert plain.record.theta_sha256 != run.record.theta_sha256
    for method in ("emcl", "halrp"):
        scenario = ("scenario=task",) if method == "halrp" else ()
        with pytest.raises(cl_bench.UserError, match="the method makes steps of its own"):
            made(tmp_path, f"method={method}", *options, *scenario)
