"""Results as data: the files in results/, the pages made from them, and rows from finished runs."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from dataclasses import replace
from decimal import Decimal
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from commands import refusal as refusal_of
from conftest import ROOT, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from records import some, write

from cl_bench.base.exceptions import UserError
from cl_bench.config import compose
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import CONF
from cl_bench.report import __main__ as report
from cl_bench.report import commands, results_table
from cl_bench.report.pool import with_added_seeds
from cl_bench.report.results_table import COLUMNS, ResultRow, as_csv, merged, read

FILES = sorted((ROOT / "results").glob("*.csv"))
sys.path.append(str(ROOT / "scripts"))  # which import one another
OTHER_PROGRAM = "not of cl_bench.run"  # stands in the note of such a command


def load_script(name: str = "results_pages") -> Any:
    spec = spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_and_readme_are_those_of_the_data() -> None:
    """Made again, nothing differs: run scripts/results_pages.py after a change of results/."""
    made = load_script().pages(ROOT)
    assert {*(ROOT / "docs/results").glob("*.md")} == {
        p for p in made if p.parent.name == "results"
    }
    for file, text in made.items():
        assert file.read_text() == text, file


def test_tables_in_texts(tmp_path: Path) -> None:
    """The table between the two lines is replaced, the rest stays, and faults are named."""
    module, file = load_script(), tmp_path / "note.md"
    start = "<!-- results/{}.csv, by scripts/results_pages.py -->"
    tables = {name: read(ROOT / f"results/{name}.csv") for name in ("pmnist", "emcl_ablation")}
    text = "a\n" + start.format("pmnist") + f"\nold\n{module.END}\nb\n"
    file.write_text(text + start.format("emcl_ablation") + f"\n{module.END}\nc\n")
    filled = module.filled(file, tables)
    assert filled.startswith("a\n") and "\nb\n" in filled and filled.endswith("\nc\n")
    assert "old" not in filled and filled.count("| options |") == 2
    file.write_text(filled)
    assert module.filled(file, tables) == filled
    for wrong, said in (
        (start.format("nope") + f"\n{module.END}\n", r"results/nope\.csv: there is no such table"),
        (start.format("pmnist") + "\n", "must end with one line"),
        (f"{module.END}\n", "stands before any table"),
    ):
        file.write_text(wrong)
        with pytest.raises(UserError, match=said):
            module.filled(file, tables)


def test_options_that_all_rows_share_stand_above_the_table() -> None:
    """Words after a comma stay; no label is left empty; labels are sorted by a metric."""
    module, (first, *_) = load_script("results_tables"), read(ROOT / "results/pmnist.csv")

    def rows(*labels: str) -> list[ResultRow]:
        return [replace(first, row=label, mean=Decimal(len(label))) for label in labels]

    shared, short = module.without_shared_options(rows("a=1 b=2 c=3, x a=1", "b=2 a=1 d=4"))
    assert shared == ["a=1", "b=2"] and [row.row for row in short] == ["c=3, x a=1", "d=4"]
    for labels in (("a=1", "a=1 b=2"), ("a=1 b=2",), ("plain words", "plain text"), ("a=1", "b=1")):
        given = rows(*labels)
        assert module.without_shared_options(given) == ([], given)
    given = rows("a=1", "a=1 b=2", "a=1 b")
    other = replace(given[0], metric="other", mean=Decimal(99))
    alone = replace(given[0], row="none", metric="other")
    made = module.ordered([*given, other, alone], first.metric)
    assert made == [given[1], given[2], given[0], other, alone]
    with pytest.raises(UserError, match="order: ACCC: no row of pmnist has this metric"):
        module.ordered(given, "ACCC")
    assert module.ordered([*given, other], None) == [*given, other]


def test_what_all_rows_note_stands_once_on_a_page() -> None:
    """So does each commit, also one of two that are in a cell."""
    module, (first, *_) = load_script(), read(ROOT / "results/pmnist.csv")
    rows = [
        replace(first, row="a", note="config 1; seed=3 was added later", commit="c; d", date=""),
        replace(first, row="b", note="config 2; seed=3 was added later; carried over from f"),
    ]
    rows[1] = replace(rows[1], commit="d", date="", versions="python 3", device="cpu")
    rows[0] = replace(rows[0], versions="python 3", device="cpu")
    (text,) = module.notes([[row] for row in rows])
    assert text.splitlines()[2:] == [
        "- All rows: seed=3 was added later.",
        "- a: config 1.",
        "- b: config 2.",
        "- Carried over from `f`.",
        "- Device: cpu.",
        "- Commit: c; d.",
        "- Versions: python 3.",
    ]
    (text,) = module.notes([[rows[0]]])
    assert "- a: config 1; seed=3 was added later." in text


def test_a_drawing_has_a_bar_for_each_row() -> None:
    """The longest is 340 units long, the others in proportion."""
    module, rows = load_script("results_tables"), read(ROOT / "results/curvature_quality.csv")
    drawn = ElementTree.fromstring(module.bars(module.grouped(rows), "share"))
    means = [float(row.mean) for row in rows if row.metric == "share"]
    lengths = [int(bar.attrib["width"]) for bar in drawn.iter("rect")]
    assert lengths == [round(340 * mean / max(means)) for mean in means]
    texts = [text.text for text in drawn.iter("text")]
    assert texts[::2] == [row.row for row in rows if row.metric == "share"]


def test_results_beside_published_figures_of_another_protocol() -> None:
    """Of figures for two memories that is shown which was asked for; differences in their SE."""
    module, rows = load_script("results_tables"), read(ROOT / "results/suite_seqcifar10.csv")
    text = module.beside_published(rows, "DER", **{"buffer.capacity": 500}).replace("\xa0", " ")
    assert "| `gem` | class | ACC | 22.32 ± 1.23 | 26.20 ± 1.26 | -3.88 |" in text
    (row,) = (row for row in rows if row.method == "joint" and row.metric == "ACC")
    own = replace(row, dataset="seqcifar100", mean=Decimal("50.38"), sd=Decimal("0.6"), n=4)
    text = module.beside_published([own], "van de Ven 2022").replace("\xa0", " ")
    assert "| 50.38 ± 0.6 | 49.78 ± 0.21 SEM | +0.60 | 1.6 |" in text, "0.6 / hypot(0.21, 0.3)"
    with pytest.raises(UserError, match="beside DERR: it has no figure of a row of suite_seqc"):
        module.beside_published(rows, "DERR")


def test_every_table_has_a_title() -> None:
    titles = yaml.safe_load((ROOT / "results/titles.yaml").read_text())
    assert FILES and {*titles} == {file.stem for file in FILES}
    for about in titles.values():
        assert about["title"] and about["text"].endswith(".")


def test_every_column_is_explained() -> None:
    text = (ROOT / "results/README.md").read_text()
    heads = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    assert ", ".join(heads).replace("| ", "").replace("`", "").split(", ") == list(COLUMNS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_row_is_right(file: Path) -> None:
    """Each parses; written again it is the same text; an experiment that it names exists."""
    rows = read(file)
    assert rows and as_csv(rows) == file.read_text()
    options = {group: {p.stem for p in (CONF / group).glob("*.yaml")} for group in GROUPS}
    for row in rows:
        for group in GROUPS:
            assert getattr(row, group) in {"", *options[group]}, row
        for word in row.note.split("carried over from ")[1:]:
            assert (ROOT / word.split(";")[0]).is_file(), row


GROUPS = ("dataset", "scenario", "method")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_command_is_accepted(file: Path) -> None:
    """By the check that a run makes, each job of a sweep; or the note says why it is not.

    Of at most four commands of a table, from its first to its last.
    """
    every = [*{(row.command, row.note): None for row in read(file)}]
    for command, note in every[:: -(-len(every) // 4)]:
        words = shlex.split(command)
        if words[:1] == ["python"]:
            assert OTHER_PROGRAM in note and (ROOT / words[1]).is_file()
            words = [word for word in words[2:] if "=" in word]
        elif not words:
            assert "no command" in note
        for job in jobs(words):
            assert refusal(job) is None, (command, refusal(job))


def jobs(words: list[str]) -> list[tuple[str, ...]]:
    """The jobs of a sweep, of its first seed."""
    choices = []
    for word, parsed in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        own = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else []
        key = parsed.get_key_element()
        choices.append(
            [f"{key}={value}" for value in own[: 1 if key == "seed" else None]] or [word]
        )
    return list(itertools.product(*choices))


def refusal(job: tuple[str, ...]) -> str | None:
    """The line that a command is refused with; None: it is accepted."""
    return refusal_of(lambda: composed(*job))


def test_a_refusal_is_seen() -> None:
    assert refusal(("method=ewc", "method.strength=high")) is not None
    assert len(jobs(["seed=0,1", "scenario.order=A,B", "model.hidden=[5,5]"])) == 2


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return some(tmp_path / "outputs")


def save(monkeypatch: pytest.MonkeyPatch, runs: Path, file: Path, *more: str) -> list[ResultRow]:
    """The rows of a table after `python -m cl_bench.report <runs> --save <file>`."""
    monkeypatch.setattr("sys.argv", ["report", str(runs), "--save", str(file), *more])
    report.main()
    return read(file)


def test_runs_are_saved_with_all_that_records_know(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for record in runs.rglob("er/aaa/*/record.json"):
        content = json.loads(record.read_text())
        own = {"device": "cpu", "commit": "abc", "python": "3.12", "versions": {"torch": "2.10"}}
        content["measured"] |= own
        record.write_text(json.dumps(content))
        status = {"state": "done", "time": "2026-11-2" + record.parent.name[-1] + "T10:00:00+0000"}
        (record.parent / "status.json").write_text(json.dumps(status))
    rows = save(monkeypatch, runs, tmp_path / "toy.csv")
    row = next(row for row in rows if row.row == "er optimizer.lr=0.1 [aaa]")
    assert (row.table, row.metric, row.unit, row.split) == ("toy", "ACC", "percent", "test")
    assert (row.mean, row.sd, row.n, row.seeds) == (60, 10, 3, "0,1,2")
    assert row.lower is not None and row.upper is not None
    assert float(row.lower) == pytest.approx(35.1586, abs=1e-4)  # 60 - 4.3027 * 10 / sqrt(3)
    assert float(row.upper) == pytest.approx(84.8414, abs=1e-4)
    assert (row.device, row.commit, row.versions) == ("cpu", "abc", "python 3.12, torch 2.10")
    assert row.date == "2026-11-22" and (row.dataset, row.scenario) == ("toy", "data")
    assert row.command == "" and "no command: none was found" in row.note
    units = {row.metric: row.unit for row in rows}
    assert units["train s"] == "seconds" and units["gradients"] == "count"
    assert {row.split for row in rows} == {"test", "val"}
    single = next(row for row in rows if row.row == "er optimizer.lr=0.2 [bbb]")
    assert (single.n, single.sd, single.lower) == (1, None, None)


def test_saving_replaces_the_same_and_keeps_the_rest(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "toy.csv"
    before = save(monkeypatch, runs, file)
    assert save(monkeypatch, runs, file) == before
    (kept, other), rest = before[:2], before[2:]
    changed = replace(kept, mean=Decimal(7), sd=None, lower=None, upper=None)
    by_hand = replace(other, row="by hand")
    results_table.write(file, [by_hand, changed, other, *rest])
    assert save(monkeypatch, runs, file) == [by_hand, *before]
    assert merged([changed], [kept, by_hand]) == [kept, by_hand]


def test_seeds_that_are_added_later_count_as_those_of_one_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean, deviation and interval of all seeds, also where one part has a single seed."""
    accuracies = 0.5, 0.63, 0.7, 0.41, 0.44
    write(tmp_path / "all", "er", "aaa", accuracies)
    write(tmp_path / "all", "ewc", "bbb", (0.2, 0.3))
    rows = save(monkeypatch, tmp_path / "all", tmp_path / "toy.csv")
    for first in (1, 3, 4):
        for part, chosen in (("a", range(first)), ("b", range(first, 5))):
            write(tmp_path / f"{part}{first}", "er", "aaa", accuracies)
            for seed in {*range(5)} - {*chosen}:
                (tmp_path / f"{part}{first}/toy/data/er/aaa/seed{seed}/record.json").unlink()
        write(tmp_path / f"a{first}", "ewc", "bbb", (0.2, 0.3))
        (tmp_path / f"apart{first}").mkdir()
        file = tmp_path / f"apart{first}/toy.csv"
        save(monkeypatch, tmp_path / f"a{first}", file)
        added = save(monkeypatch, tmp_path / f"b{first}", file, "--add-seeds")
        for row, whole in zip(added, rows, strict=True):
            assert (row.key, row.n, row.seeds) == (whole.key, whole.n, whole.seeds)
            for name in ("mean", "sd", "lower", "upper"):
                own, expected = float(getattr(row, name)), float(getattr(whole, name))
                assert own == pytest.approx(expected, abs=1e-6), (row.key, name)
        later = ",".join(map(str, range(first, 5)))
        assert f"seed={later} was added later" in added[0].note
        assert added[-1] == rows[-1], "a row without new seeds stays"


def test_a_command_gets_the_added_seeds() -> None:
    """Commits, versions and notes are of both parts, each once."""
    old = ResultRow(**dict.fromkeys(COLUMNS, None) | TEXTS | {"mean": Decimal(1), "n": 1})  # type: ignore[arg-type]
    old = replace(old, commit="a; b", note="config c", date="2026-11-20")
    new = replace(old, mean=Decimal(3), seeds="2", commit="b", date="2026-11-01")
    (row,) = with_added_seeds([old], [new])
    assert row.command == "method=er dataset=pmnist5k dataset.tasks=2 seed=2,7"
    assert (row.mean, row.n, row.seeds, row.commit) == (2, 2, "2,7", "a; b")
    assert row.sd is not None and float(row.sd) == pytest.approx(2**0.5)
    assert (row.note, row.date) == ("config c; seed=2 was added later", "2026-11-20")
    assert with_added_seeds([], [new]) == [new]
    for wrong, said in (
        ({"seeds": "2,7", "n": 2, "sd": Decimal(1)}, "mine: has seed 2 already"),
        ({"n": 5}, "mine: ACC: n=5 is not its seeds' number"),
        ({"seeds": "7,8", "n": 2}, "mine: ACC: has no standard deviation"),
    ):
        with pytest.raises(UserError, match=said):
            with_added_seeds([replace(old, **wrong)], [new])


def record_of(*overrides: str) -> dict[str, Any]:
    """What a record says of a config: what was chosen, all values, and the hash."""
    cfg = composed(*overrides)
    plain = check_config(cfg)
    normalise_floats(cfg, plain)
    chosen = compose.composed(*overrides, with_hydra=True).hydra.runtime.choices
    labels = {group: chosen[group] for group in GROUPS}
    return {"labels": labels, "config": plain, "hash": config_hash(cfg), "seed": 0}


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        (("dataset=pmnist", "method=joint"), "dataset=pmnist method=joint"),
        (("method=er", "buffer=reservoir500"), "dataset=pmnist5k method=er buffer.capacity=500"),
        (
            ("method=ewc", "merging=apart", "curvature.samples=9", "model.hidden=[5,5]"),
            "dataset=pmnist5k method=ewc merging=apart curvature.samples=9 'model.hidden=[5,5]'",
        ),
        (
            ("dataset=rmnist", "scenario.order=seed:1", "evaluation.split=val"),
            "dataset=rmnist method=finetune evaluation.split=val scenario.order=seed:1",
        ),
    ],
)
def test_a_config_is_traced_back_to_its_command(overrides: tuple[str, ...], command: str) -> None:
    """Which makes a config of the same hash, whatever the typed one was."""
    assert commands.find_command(record_of(*overrides)) == command


def test_a_command_may_begin_with_an_experiment() -> None:
    """The rest of it is what differs from that."""
    protocol = "experiment=suite/protocol/seqcifar10"
    record = record_of(protocol, "scenario=task", "method=er", "optimizer.lr=0.05")
    found = commands.find_command(record, "suite/protocol/seqcifar10")
    assert found == f"{protocol} scenario=task method=er optimizer.lr=0.05"
    plain = commands.find_command(record)
    assert plain is not None and plain.startswith("dataset=seqcifar10 ")
    assert commands.hash_of([*shlex.split(plain), "seed=0"]) == record["hash"]


def test_a_record_may_lack_an_option_that_came_later() -> None:
    """Where its value of today changes no number."""
    record = record_of("method=er")
    del record["config"]["runtime"]["per_gpu"], record["config"]["schedule"]["fresh_optimizer"]
    assert commands.find_command(record) == "dataset=pmnist5k method=er"
    other = record_of("method=er", "buffer=equal", "buffer.capacity=300")
    del other["config"]["method"]["buffer"]["per_class"]
    found = commands.find_command(other)
    assert found == "dataset=pmnist5k method=er buffer=equal buffer.capacity=300"
    experiment = "experiment=vandeven/cifar100", "method=er"  # which sets the later option
    older = record_of(*experiment, "schedule.fresh_optimizer=true")
    del older["config"]["schedule"]["fresh_optimizer"]
    found = commands.find_command(older, "vandeven/cifar100")
    assert found == " ".join([*experiment, "schedule.fresh_optimizer=true"])
    readings = record_of("experiment=emcl/readings")  # which has a class that no option has
    del readings["config"]["schedule"]["fresh_optimizer"]
    assert (
        commands.find_command(readings, "emcl/readings") == "experiment=emcl/readings method=emcl"
    )
    del record["config"]["schedule"]["batch_size"]
    record["hash"] = "0123456789"
    assert commands.find_command(record) is None


def test_no_command_is_found_for_what_no_option_makes() -> None:
    """And no name that a record has is looked up."""
    for key, value in (("_target_", "no.such.module.f"), ("lr", "${oc.env:HOME}"), ("lr", 9.0)):
        record = record_of()
        record["config"]["optimizer"][key] = value
        assert commands.find_command(record) is None
    record = record_of()
    record["labels"]["dataset"] = "../x"
    assert commands.find_command(record) is None


def test_a_config_that_stands_there_keeps_its_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command is typed otherwise; the orders of a config are told together."""
    runs, file = tmp_path / "outputs", tmp_path / "digits.csv"
    few = "dataset.tasks=2", "method=er"
    for order in "A", "seed:1":
        found = record_of(*few, f"scenario.order={order}")
        write(runs, "er", found["hash"], (0.5, 0.75), "pmnist5k/data")
        for record in runs.rglob(f"{found['hash']}/*/record.json"):
            content = json.loads(record.read_text())
            content["config"] = found["config"]
            record.write_text(json.dumps(content))
    old = ResultRow(**dict.fromkeys(COLUMNS, None) | TEXTS | {"mean": Decimal(1), "n": 1})  # type: ignore[arg-type]
    results_table.write(file, [old])
    with pytest.raises(SystemExit):  # seed 7 would be lost
        save(monkeypatch, runs, file)
    assert read(file) == [old]
    results_table.write(file, [replace(old, seeds="1")])
    rows = save(monkeypatch, runs, file)
    mine = [row for row in rows if row.row == "mine"]
    assert mine[0].mean == Decimal("62.5") and mine[0].seeds == "0,1"
    assert {row.command for row in mine} == {"method=er dataset=pmnist5k dataset.tasks=2 seed=0,1"}
    both = {row.metric: row for row in rows if row.row.endswith("scenario.order=A,seed:1")}
    assert both["AOPD"].mean == 0 and both["AOPD"].n == 2 and both["ACC"].mean == Decimal("62.5")
    assert refusal(jobs(shlex.split(both["AOPD"].command))[1]) is None


TEXTS = {name: "" for name in COLUMNS if name not in results_table.NUMBERS}
TEXTS |= {"table": "digits", "row": "mine", "metric": "ACC", "unit": "percent", "split": "test"}
TEXTS |= {"command": "method=er dataset=pmnist5k dataset.tasks=2 seed=7", "seeds": "7"}


def test_what_a_record_says_is_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is kept, behind an apostrophe in the file; a negative number stays one."""
    write(tmp_path / "o", "er", "a", (0.5,), place="=1+1/data")
    file = tmp_path / "toy.csv"
    rows = save(monkeypatch, tmp_path / "o", file)
    assert {row.dataset for row in rows} == {"=1+1"} and ",'=1+1," in file.read_text()
    assert ",BWT,-40," in file.read_text()


GOOD = dict.fromkeys(COLUMNS, "") | {"table": "t", "row": "r", "metric": "ACC", "mean": "1"}
GOOD |= {"unit": "percent", "n": "3"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"mean": "x"}, "mean=x: must be a number"),
        ({"mean": "nan"}, "mean=nan: must be finite"),
        ({"mean": ""}, "mean: is missing"),
        ({"row": ""}, "row: is missing"),
        ({"n": "0"}, "n=0: must be a positive integer"),
        ({"unit": "miles"}, "unit=miles: must be one of percent"),
        ({"split": "train"}, "split=train: must be test, val or empty"),
        ({"sd": "-1"}, "sd=-1: must be at least 0"),
        ({"sd": "1", "n": "1"}, "sd=1: must be empty where n is 1"),
        ({"seeds": "0-2"}, "seeds=0-2: must look like 0,1,2"),
        ({"lower": "0"}, "lower=0, upper=None: do not enclose 1"),
        ({"lower": "2", "upper": "3"}, "lower=2, upper=3: do not enclose 1"),
        ({"published": "1"}, "published, published_source: one of them is missing"),
        ({"date": "yesterday"}, "date=yesterday: must look like 2026-11-28"),
        ({"table": "u"}, "table=u: the file is that of t"),
    ],
)
def test_a_wrong_cell_is_named(change: dict[str, str], line: str, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("\n".join([",".join(COLUMNS), ",".join(f'"{v}"' for v in GOOD.values())]))
    assert read(file)[0].mean == 1
    cells = [f'"{value}"' for value in (GOOD | change).values()]
    file.write_text("\n".join([",".join(COLUMNS), ",".join(cells)]))
    with pytest.raises(UserError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: row 1: {line}")


@pytest.mark.parametrize(
    ("file", "more", "line"),
    [
        ("toy.txt", [], "--save toy.txt: must be a file <table>.csv"),
        ("own.csv/x.csv", [], "own.csv/x.csv: "),
        ("own.csv", [], "own.csv: is not a table of results"),
        ("twice.csv", [], "twice.csv: row 2: ('r', 'ACC'): occurs twice"),
        ("binary.csv", [], "binary.csv: is not text in UTF-8"),
        ("new.csv", ["--experiment", "suite/none"], "--experiment suite/none: there is no such"),
        ("new.csv", ["--experiment", "suite/pmnist"], "--experiment suite/pmnist: has tuned=true"),
        ("new.csv", ["--add-seeds"], "--add-seeds: new.csv: there is no such table"),
        ("", ["--add-seeds"], "--add-seeds: has no meaning without --save"),
        (
            "pooled.csv",
            ["--by", "linear"],
            "--save: er method.linear=true (over optimizer.lr=0.1|0.2): pools several configs",
        ),
    ],
)
def test_saving_elsewhere_is_refused_in_one_line(
    file: str,
    more: list[str],
    line: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And nothing is written over."""
    monkeypatch.chdir(runs)
    Path("own.csv").write_text("my,own,table\n1,2,3\n")
    row = ",".join((GOOD | {"table": "twice"}).values())
    Path("twice.csv").write_text("\n".join([",".join(COLUMNS), row, row]))
    Path("binary.csv").write_bytes(b"\xff\xfe")
    before = {p.name: p.read_bytes() for p in runs.glob("*.csv")}
    saving = ["--save", file] if file else []
    monkeypatch.setattr("sys.argv", ["report", ".", *saving, *more])
    with pytest.raises(SystemExit) as caught:
        report.main()
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith(f"error: {line}") and said.count("\n") == 1
    for name in ("own.csv", "twice.csv", "binary.csv"):
        assert (runs / name).read_bytes() == before[name]


STUDY = ["experiment=curvature_quality", "study.points=1"]


save_study = load_script("save_study")


def study_folder(root: Path) -> Path:
    """What a study leaves, with two measurements of two curvatures."""
    name = commands.hash_of(STUDY)
    assert name is not None
    folder = root / name / "seed0"
    folder.mkdir(parents=True)
    (folder / "table.csv").write_text(
        "step,curvature,share,rise\n3,kfac,0.5,2.0\n3,full,,2.0\n6,kfac,0.25,4.0\n6,full,1.0,4.0\n"
    )
    OmegaConf.save(composed(*STUDY), folder / "config.yaml", resolve=True)
    measured = {"device": "cpu", "commit": "abc", "python": "3.11", "versions": {"torch": "2"}}
    status = {"state": "done", "time": "2026-11-29T09:00:00+0000", "measured": measured}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def test_a_study_is_saved(tmp_path: Path) -> None:
    """The last row of each curvature, a metric a column; once more, and nothing is there twice."""
    folder, file = study_folder(tmp_path), tmp_path / "quality.csv"
    for _ in range(2):
        assert save_study.save(folder, file, ["curvature", "share", "rise"], STUDY) == 4
    rows = results_table.read(file)
    assert [(row.row.rpartition(": ")[2], row.metric, float(row.mean)) for row in rows] == [
        ("kfac", "share", 0.25),
        ("kfac", "rise", 4.0),
        ("full", "share", 1.0),
        ("full", "rise", 4.0),
    ]
    assert rows[0].command == "experiment=curvature_quality study.points=1 seed=0"
    assert (rows[0].dataset, rows[0].scenario, rows[0].seeds) == ("seqcifar100", "data", "0")
    assert (rows[0].commit, rows[0].versions, rows[0].date) == (
        "abc",
        "python 3.11, torch 2",
        "2026-11-29",
    )


def test_a_study_that_cannot_be_saved(tmp_path: Path) -> None:
    folder, file = study_folder(tmp_path), tmp_path / "quality.csv"
    with pytest.raises(UserError, match="makes another config"):
        save_study.save(folder, file, ["curvature", "share"], [*STUDY, "optimizer.lr=0.5"])
    with pytest.raises(UserError, match="has no column nothing"):
        save_study.save(folder, file, ["curvature", "nothing"], STUDY)
    with pytest.raises(UserError, match="has no column nothing"):
        save_study.save(folder, file, ["nothing", "share"], STUDY)
    (folder / "status.json").write_text('{"state": "failed"}')
    with pytest.raises(UserError, match="has no finished study"):
        save_study.save(folder, file, ["curvature", "share"], STUDY)
    (folder / "status.json").unlink()
    with pytest.raises(UserError, match="has no finished study"):
        save_study.save(folder, file, ["curvature", "share"], STUDY)
    assert not file.exists()
