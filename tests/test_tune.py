"""The search: what it asks for, what it refuses, what it writes, who uses it."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, composed, finished
from forks import Command
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from records import write
from test_launchers import until

from cl_bench import tune
from cl_bench.base.exceptions import StopRun, UserError
from cl_bench.config import compose, tuned
from cl_bench.config.name import config_hash
from cl_bench.tuning import optuna_search, trials
from cl_bench.tuning.axis import Axis
from cl_bench.tuning.command import _tune_one as tune_one
from cl_bench.tuning.command import at_ends
from cl_bench.tuning.search import Search
from cl_bench.tuning.spaces import read_spaces, searches
from cl_bench.tuning.trials import Trial

GRID = "grid=method.strength=1,20 optimizer.lr=0.03,0.1,0.3"


def axis(text: str) -> Axis:
    (parsed,) = OverridesParser.create().parse_overrides([text])
    return Axis.from_override(parsed)


def test_a_grid_is_the_product_of_its_values() -> None:
    search = Search.parse(["method=ewc", GRID, "first=2", "seeds=0,3"])
    points = search.points()
    assert len(points) == 6 and points[0] == {"method.strength": "1", "optimizer.lr": "0.03"}
    assert points[5] == {"method.strength": "20", "optimizer.lr": "0.3"}
    words = search.overrides_of(points[1], 3)
    assert words[0] == "method=ewc" and "evaluation.split=val" in words
    assert words[-3:] == ["method.strength=1", "optimizer.lr=0.1", "seed=3"]
    assert "stream.first=2" in words


def test_a_best_value_at_an_end_is_told() -> None:
    """With two values each is an end; what is no number has none."""

    def found(*points: dict[str, str]) -> list[str]:
        return at_ends([Trial(point) for point in points])

    rates = [{"lr": rate, "merging": "sum", "k": k} for rate, k in (("0.3", "1"), ("0.1", "2"))]
    assert found(*rates) == []
    rates.append({"lr": "3e-2", "merging": "apart", "k": "1"})
    assert found(*rates) == ["lr=0.3 is the highest that was tried: others may be better still"]
    assert found(*rates[1:], rates[0]) == []
    (line,) = found(*rates[::-1])
    assert line.startswith("lr=3e-2 is the lowest")


def test_axes_are_hydras_sweeps() -> None:
    assert axis("method.x=range(1,4)").values == ("1", "2", "3")
    assert axis("merging=sum,apart").value_at(0.5) == "apart"
    line = axis("optimizer.lr=interval(1,3)")
    assert line.value_at(0.0) == "1" and line.value_at(0.5) == "2"
    log = axis("optimizer.lr=tag(log,interval(0.01,1))")
    assert log.log and log.value_at(0.5) == "0.1"


def test_random_points_are_the_same_at_every_start() -> None:
    asked = ["strategy=random", "trials=5", "grid=optimizer.lr=tag(log,interval(0.01,1))"]
    one, two = (Search.parse(asked).points() for _ in range(2))
    assert one == two and len(one) == 5
    assert all(0.01 <= float(point["optimizer.lr"]) < 1 for point in one)


WRONG = [
    ([], "grid: missing"),
    (["grid=optimizer.lr=0.1"], "optimizer.lr=0.1 has one value"),
    (["grid=optimizer.lr=interval(0.1,1)"], "strategy=grid cannot enumerate"),
    (
        ["grid=optimizer.lr=interval(1,0.1)", "strategy=random"],
        "an interval has finite ends and rises",
    ),
    ([GRID, "method=ewc", "optimizer.lr=0.1"], "optimizer.lr is also set by an override"),
    (
        [GRID, "method=ewc", "strategy=best"],
        "strategy=best: must be one of grid, random, sobol, optuna",
    ),
    ([GRID, "method=ewc", "first=0"], "first=0: must be an integer, at least 1"),
    ([GRID, "method=ewc", "seeds=a"], "seeds=a: must be an integer, at least 0"),
    (
        [GRID, "method=ewc", "evaluation.split=test"],
        "evaluation.split: is set by the search itself",
    ),
    (["grid=optimizer.lr=0.1,1 optimizer.lr=2,3"], "optimizer.lr is listed twice"),
    (["grid=optimizer.lr=0.1,0.1"], "are the same config: a value is listed twice"),
    ([GRID, "method=ewc", "seeds=0,0"], "seeds=0,0: a seed is listed twice"),
    (["grid=method.strength=1,1.0", "method=ewc"], "are the same config: a value is listed twice"),
    (["grid=method.beta=0.1,1", "method=mer", "method.algorithm=6"], "or makes no difference"),
    (["grid=method.strength=1,2,-3", "method=ewc"], "method.strength=-3: must be at least 0"),
    (["grid=method.replay=interval(1,5)", "method=mer", "strategy=optuna"], "be an integer"),
    (
        ["grid=optimizer.lr=interval(0,inf)", "strategy=random"],
        "an interval has finite ends and rises",
    ),
    (["grid='optimizer.lr=1,2"], "grid='optimizer.lr=1,2: no closing quotation"),
    ([GRID, "method=ewc", "jobs=2", "jobs=3"], "jobs: is given twice, 2 and 3"),
    ([GRID, "method=ewc", "jobs=" + 5000 * "9"], "must be an integer, at least 1"),
    ([GRID, "method=ewc", "trials=5"], "trials=5: strategy=grid runs all points"),
    (
        [GRID, "method=ewc", "strategy=optuna", "jobs=2"],
        "jobs=2: strategy=optuna runs one point after",
    ),
    ([GRID, "method=ewc", "++seed=1"], "seed: is set by the search itself"),
    ([GRID, "method=ewc", "+optimizer.lr=1"], "optimizer.lr is also set by an override"),
    (["grid=curvature=kfac,full"], "curvature is a group; search once for each of its options"),
    (["grid=method.strength=-1,1", "method=ewc"], "method.strength=-1: must be at least 0"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[w[1] for w in WRONG])
def test_what_is_refused_before_anything_runs(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        Search.parse(arguments)
    assert said in str(caught.value)


def searched(
    arguments: list[str], where: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> dict[str, Any]:
    """What is written when the runs answer with `score` of their point."""

    def run_trial(search: Search, point: dict[str, str], *_: Any) -> Trial:
        return Trial(point, [score(point)] * len(search.seeds))

    monkeypatch.setattr(optuna_search, "run_trial", run_trial)
    monkeypatch.setattr(trials, "run_trial", run_trial)
    monkeypatch.chdir(where)
    monkeypatch.setattr(sys, "argv", ["tune", *arguments])
    tune.main()
    (file,) = where.rglob("*.yaml")
    assert file == where / "tuned/pmnist5k/data/ewc.yaml"
    return OmegaConf.to_object(OmegaConf.load(file))  # type: ignore[return-value]


def test_the_best_is_written_with_its_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def score(point: dict[str, str]) -> float:
        return 0.9 - abs(float(point["optimizer.lr"]) - 0.1) - float(point["method.strength"]) / 100

    words = ["method=ewc", GRID, f"data_dir={tmp_path}"]
    found = searched(words, tmp_path, monkeypatch, score)
    assert found["values"] == {"method.strength": 1, "optimizer.lr": 0.1}
    evidence = found["evidence"]
    assert (
        evidence["split"] == "val" and evidence["first tasks"] == 3 and len(evidence["trials"]) == 6
    )
    assert evidence["trials"][0]["ACC"] == "89.00"
    assert "grid=method.strength" in evidence["command"]
    assert str(tmp_path) not in evidence["command"], "folders of a machine are no evidence"
    assert evidence["under"]["schedule.epochs"] == 1 and "optimizer.lr" not in evidence["under"]
    assert "best:" in capsys.readouterr().out


def test_optuna_asks_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason='no optuna here: pip install -e ".[tune]"')
    asked: list[list[str]] = []

    def score(point: dict[str, str]) -> float:
        asked[-1].append(point["optimizer.lr"])
        return 1 - abs(math.log10(float(point["optimizer.lr"])) + 1)

    space = "grid=optimizer.lr=tag(log,interval(0.001,10))"
    for _ in range(2):
        asked.append([])
        arguments = ["method=ewc", "strategy=optuna", "trials=12", space]
        found = searched(arguments, tmp_path, monkeypatch, score)
    assert asked[0] == asked[1] and len(asked[0]) == 12
    assert 0.05 < found["values"]["optimizer.lr"] < 0.2


def test_an_option_without_effect_does_not_part_tuned_values(tmp_path: Path) -> None:
    """Such as one that is newer than the values, at its default."""
    values, cfg = {"optimizer.lr": 0.5}, composed("method=lwf")
    under = tuned.conditions(cfg, values)
    assert under.pop("method.combine") == "sum"
    file = tmp_path / "lwf.yaml"
    found = {"values": values, "evidence": {"under": under}}
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(found)))
    tuned.apply(cfg, file, [])
    assert cfg.optimizer.lr == 0.5
    with pytest.raises(UserError, match=r"with method.combine=None, this run has .*combine=tasks"):
        tuned.apply(composed("method=lwf", "method.combine=tasks"), file, [])


def test_sobol_points_are_spread_evenly() -> None:
    """Of eight points, one in each eighth of an axis; the same at every start."""
    asked = [
        "strategy=sobol",
        "trials=8",
        "grid=optimizer.lr=interval(0,8) method.xi=interval(0,8)",
    ]
    one, two = (Search.parse(["method=si", *asked]).points() for _ in range(2))
    assert one == two
    for key in ("optimizer.lr", "method.xi"):
        assert sorted(int(float(point[key])) for point in one) == list(range(8))


SPACES = """
every: {optimizer.lr: "0.03,0.1"}
er: {}
ewc: {method.strength: "1,20", optimizer.lr: null}
si: {method.strength: "1,2", optimizer.lr: "0.01,0.02,0.03"}
"""


def test_several_methods_each_with_its_own_space(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(SPACES)
    asked = ["method=er,ewc,si", f"spaces={file}", "first=2", "dataset=pmnist5k"]
    found = searches(asked)
    assert [search.overrides for search in found] == [
        ["dataset=pmnist5k", f"method={name}"] for name in ("er", "ewc", "si")
    ]
    assert [len(search.points()) for search in found] == [2, 2, 6]
    assert found[1].points()[0] == {"method.strength": "1"}
    assert found[2].first == 2 and {axis.key for axis in found[2].axes} == {
        "method.strength",
        "optimizer.lr",
    }
    (alone,) = searches(["method=ewc", GRID])
    assert alone == Search.parse([GRID, "method=ewc"])
    er, ewc = searches(["method=er,ewc", "grid=optimizer.lr=0.1,1"])
    assert er.points() == ewc.points()
    (chosen,) = searches([f"spaces={file}", "experiment=emcl/pmnist", "method=er"])
    assert chosen.overrides == ["experiment=emcl/pmnist", "method=er"]


@pytest.mark.parametrize("strategy", ["grid", "sobol", "optuna"])
def test_a_method_without_keys_has_one_trial(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a sweep with tuned=true has a file for each of its methods."""
    (tmp_path / "mine.yaml").write_text(SPACES + "ncm: {optimizer.lr: null}\n")
    words = ["method=ncm", "dataset=seqmnist5k", f"tuned_dir={tmp_path}", f"strategy={strategy}"]
    (search,) = searches([f"spaces={tmp_path / 'mine.yaml'}", *words])
    assert search.points_to_check() == search.points() == [{}]
    monkeypatch.setattr("sys.argv", ["tune", *words])
    ran: list[Trial] = []

    def run_trial(_: Any, point: Any, *__: Any) -> Trial:
        ran.append(Trial(point, [0.5]))
        return ran[-1]

    for module in (trials, optuna_search):
        monkeypatch.setattr(module, "run_trial", run_trial)
    tune_one(search)
    assert len(ran) == 1
    file = tuned.values_file(tmp_path, "seqmnist5k", "task", "ncm")
    cfg = composed(*words[:2])
    before = config_hash(cfg)
    tuned.apply(cfg, file, [])
    assert config_hash(cfg) == before
    assert file.read_text().startswith("values: {}\n")


def test_a_key_with_one_value_has_it_at_all_points(tmp_path: Path) -> None:
    """Something that a method needs beside the protocol. Alone it makes one trial."""
    hat = 'hat: {model.init: kaiming, method.c: "interval(0.1,2)"}'
    (tmp_path / "mine.yaml").write_text(f"{hat}\ner: {{optimizer.lr: '0.1'}}")
    words = [f"spaces={tmp_path / 'mine.yaml'}", "strategy=sobol", "trials=3"]
    hat, er = searches([*words, "method=hat,er", "dataset=seqmnist5k", "scenario=task"])
    assert [point["model.init"] for point in hat.points()] == ["kaiming"] * 3
    assert len({point["method.c"] for point in hat.points()}) == 3
    assert er.points() == [{"optimizer.lr": "0.1"}]


WRONG_SPACES = [
    (SPACES, ["method=er,mas"], "method=mas: the spaces do not have it; they have er, ewc, si"),
    (SPACES, ["method=er", GRID], "is given with grid=; leave one of them out"),
    (SPACES, ["method=er,er"], "method=er,er: a method is listed twice"),
    (SPACES, ["method=er", "method=ewc"], "the same is given twice, method=er and method=ewc"),
    (SPACES, [], "method=finetune: the spaces do not have it"),
    ("er: 3", ["method=er"], "er must map keys to values in the notation of grid="),
    ("er: {optimizer.lr: [1, 2]}", ["method=er"], "er must map keys to values"),
    ("[er]", ["method=er"], "must map methods to the keys that are searched"),
    ("er: {", ["method=er"], "cannot be read as YAML"),
    ("er: {~optimizer.momentum: '0.9'}", ["method=er"], "optimizer.momentum=0.9 has one value"),
]


@pytest.mark.parametrize(("text", "words", "said"), WRONG_SPACES, ids=[w[2] for w in WRONG_SPACES])
def test_spaces_that_are_refused(text: str, words: list[str], said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        searches([f"spaces={file}", *words])
    assert said in str(caught.value)


def test_the_spaces_that_come_with_the_package() -> None:
    """Each is valid for its protocol, and has each method of its suite."""
    with pytest.raises(
        UserError, match=r"there are suite, suite_pmnist, suite_seqcifar100, or name a \.yaml"
    ):
        read_spaces("none")
    suites = {
        "pmnist": "suite_pmnist",
        "seqcifar10": "suite",
        "seqcifar10_task": "suite",
        "seqcifar100": "suite_seqcifar100",
    }
    for suite, name in suites.items():
        cfg = compose.composed(f"experiment=suite/{suite}", with_hydra=True)
        methods = cfg.hydra.sweeper.params.method
        spaces = read_spaces(name).keys()
        assert set(methods.split(",")) <= spaces
        some = methods.split(",")[len(suite) % 5 :: 5]  # a fifth of them: each is composed
        protocol, *scenario = suite.split("_")
        words = [f"experiment=suite/protocol/{protocol}", f"spaces={name}", "strategy=sobol"]
        words += [f"scenario={word}" for word in scenario] + [f"method={','.join(some)}"]
        assert len(searches([*words, "trials=1"])) == len(some)


@pytest.mark.parametrize(
    ("suite", "dataset", "scenario"),
    [
        ("pmnist", "pmnist", "data"),
        ("seqcifar10", "seqcifar10", "class"),
        ("seqcifar10_task", "seqcifar10", "task"),
        ("seqcifar100", "seqcifar100", "class"),
    ],
)
def test_each_method_of_a_suite_has_tuned_values(suite: str, dataset: str, scenario: str) -> None:
    """They fit its protocol; every fourth method is composed."""
    cfg = compose.composed(f"experiment=suite/{suite}", with_hydra=True)
    assert cfg.tuned
    methods = cfg.hydra.sweeper.params.method.split(",")
    there = (tuned.values_file(tuned.SHIPPED, dataset, scenario, method) for method in methods)
    assert all(file.is_file() for file in there)
    protocol = f"experiment=suite/protocol/{dataset}", f"scenario={scenario}"
    for method in methods[::4]:
        own = composed(*protocol, f"method={method}")
        file = tuned.find_file(own, (dataset, scenario, method))
        assert file.is_relative_to(tuned.SHIPPED)
        before = config_hash(own)
        tuned.apply(own, file, [])
        values: Any = OmegaConf.load(file)
        assert (config_hash(own) != before) == bool(values["values"])


def test_tuned_values_yield_to_what_is_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tuned.values_file(tmp_path, "pmnist5k", "data", "ewc")
    cfg = composed("method=ewc", "optimizer.lr=0.5")
    with pytest.raises(UserError, match=r"nothing was tuned for pmnist5k/data/ewc \(there is none"):
        tuned.apply(cfg, file, [])
    other = composed("method=packnet", "scenario=class")
    with pytest.raises(UserError, match="scenario=class: PackNet can be used with scenario=task"):
        tuned.apply(other, tuned.values_file(tmp_path, "pmnist5k", "class", "packnet"), [])
    file.parent.mkdir(parents=True)
    values = {"method.strength": 7, "optimizer.lr": 0.2}

    def write(values: dict[str, Any], *overrides: str) -> None:
        under = tuned.conditions(composed("method=ewc", *overrides), values)
        found = {"values": values, "evidence": {"under": under}}
        file.write_text(OmegaConf.to_yaml(OmegaConf.create(found)))

    write(values, "dataset.tasks=3")
    tuned.apply(cfg, file, ["method=ewc", "optimizer.lr=0.5"])
    assert capsys.readouterr().err == f"tuned: method.strength=7 ({file})\n"
    assert cfg.method.strength == 7 and cfg.optimizer.lr == 0.5
    plain = composed("method=ewc", "optimizer.lr=0.5", "method.strength=7")
    cfg.tuned = True
    assert config_hash(cfg) == config_hash(plain), "the same run as if it were typed"
    write(values, "curvature=kfac")
    with pytest.raises(UserError, match=r"_target_=\S+KFAC.*, this run has .*Fisher"):
        tuned.apply(cfg, file, [])
    write(values, "schedule.epochs=2")
    with pytest.raises(
        UserError, match=r"with schedule\.epochs=2, this run has schedule.epochs=1;"
    ):
        tuned.apply(cfg, file, [])
    file.write_text("values: {method.strength: 7}\n")
    with pytest.raises(UserError, match="does not say what it was found with; tune again"):
        tuned.apply(cfg, file, [])
    write({**values, "method.no": 7})
    with pytest.raises(UserError, match=r"has method\.no, which this config does not have"):
        tuned.apply(cfg, file, [])


def test_the_users_values_go_before_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    labels = ("pmnist5k", "data", "ewc")
    cfg = composed("method=ewc", f"tuned_dir={tmp_path / 'mine'}")
    mine, shipped = (tmp_path / part / "pmnist5k/data/ewc.yaml" for part in ("mine", "shipped"))
    assert tuned.find_file(cfg, labels) == mine, "the place where it is missing"
    for file in (shipped, mine):
        file.parent.mkdir(parents=True)
        file.touch()
        assert tuned.find_file(cfg, labels) == file


def test_a_search_by_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials; one of them diverges, and is no trial to choose. Paths are wider than a line."""
    where = f"output_dir={tmp_path / ('x' * 150)}"
    arguments = ["method=finetune", "tracking=none", "dataset.tasks=2", where]
    arguments += ["dataset.train_per_task=60", "first=1", "grid=optimizer.lr=0.1,1e9"]
    search = Search.parse(arguments)
    ran = trials.run_points(search, lambda trial: None)
    assert ran[0].accuracies[0] > 0.2 and ran[0].error is None
    assert ran[1].error == "diverged"
    assert ran[1].score == -math.inf


class Runs:
    """Runs that answer as they are told, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, str, str]) -> None:
        self.answers, self.count = list(answers), 0
        monkeypatch.setattr(trials.Processes, "run", self)
        monkeypatch.setattr(trials, "POLL", 0.0)

    def __call__(self, overrides: list[str]) -> tuple[int, str, str]:
        self.count += 1
        return self.answers.pop(0)


DIVERGED = (2, "", "error: training diverged in task 0: the loss is nan at step 6; lower it\n")
LOCKED = (2, "", "error: /x/seed0: another process is working on this run\n")
FAILURES = {
    "a traceback": (1, "", "ValueError: a bug\n"),
    "killed": (-9, "", ""),
    "a full disk": (2, "", "error: /x/metrics.jsonl: No space left on device; the last\n"),
    "no record": (0, "files: /nowhere\n", ""),
    "diverged by name alone": (2, "", "error: /training diverged in task 0: x: Is a directory\n"),
}


@pytest.fixture
def done(tmp_path: Path) -> tuple[int, str, str]:
    """The answer of a run that went well."""
    write(tmp_path, "ewc", "a", (0.5,))
    file = next(tmp_path.rglob("record.json"))
    record = json.loads(file.read_text())
    record["code"] = {"sha256": "one", "files": {"cl_bench.core.learner": "1"}}  # not of now
    file.write_text(json.dumps(record))
    return 0, f"files: {file.parent}\n", ""


def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words = ["tune", "method=ewc", "grid=optimizer.lr=0.1,1"]
    monkeypatch.setattr(sys, "argv", words)
    return tmp_path / "tuned/pmnist5k/data/ewc.yaml"


def test_a_locked_run_is_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    done: tuple[int, str, str],
) -> None:
    file, runs = asked(tmp_path, monkeypatch), Runs(monkeypatch, LOCKED, LOCKED, done, done)
    tune.main()
    assert runs.count == 4 and file.is_file()
    said = capsys.readouterr().err
    assert said.count("/x/seed0: another process is working on this run: waiting for it") == 1


def test_a_point_that_diverged_is_no_evidence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    done: tuple[int, str, str],
) -> None:
    file, _ = asked(tmp_path, monkeypatch), Runs(monkeypatch, DIVERGED, done)
    tune.main()
    assert "training diverged at 1 of 2 points, which are skipped" in capsys.readouterr().out
    found = OmegaConf.to_object(OmegaConf.load(file))
    assert found["values"] == {"optimizer.lr": 1}  # type: ignore[index,call-overload]
    assert found["evidence"]["trials"][1]["ACC"] == "diverged"  # type: ignore[index,call-overload]


def test_where_all_diverge_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = asked(tmp_path, monkeypatch), Runs(monkeypatch, DIVERGED, DIVERGED)
    with pytest.raises(UserError, match="diverged at all 2 points: nothing was written"):
        tune.main()
    assert not file.exists()


@pytest.mark.parametrize("kind", FAILURES)
def test_another_failure_stops_the_search(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: tuple[int, str, str]
) -> None:
    """It says nothing of the point: better values may be there."""
    file, _ = asked(tmp_path, monkeypatch), Runs(monkeypatch, done, FAILURES[kind])
    with pytest.raises(
        UserError, match="nothing was written, the same command continues the search"
    ) as caught:
        tune.main()
    assert "\n" not in str(caught.value) and "optimizer.lr=1" in str(caught.value)
    assert not file.exists()


def test_a_failure_ends_the_runs_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other point's run is asked to stop; nobody waits for its end or for a locked run."""
    asked(tmp_path, monkeypatch)
    stopped = []

    def answer(processes: trials.Processes, overrides: list[str]) -> tuple[int, str, str]:
        if "optimizer.lr=1" in overrides:
            return FAILURES["a traceback"]
        stopped.append(processes.ended.wait(60))
        return -15, "", ""

    monkeypatch.setattr(trials.Processes, "run", answer)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "jobs=2"])
    with pytest.raises(UserError, match=r"optimizer.lr=1 .*\(exit code 1\): ValueError: a bug"):
        tune.main()
    assert stopped in ([], [True])


def test_processes_end_when_they_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = tmp_path / "waiting"
    waiting.write_text("#!/bin/sh\nexec sleep 600\n")
    waiting.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(waiting))
    processes = trials.Processes()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(processes.run, [])
        while not processes.running:
            assert not answer.done()
        processes.stop()
        assert answer.result() == (-signal.SIGTERM, "", "")
    with pytest.raises(UserError, match="the search has ended"):
        processes.run([])


def test_a_signal_ends_a_search_and_its_runs() -> None:
    with pytest.raises(StopRun), trials.Processes() as processes:
        os.kill(os.getpid(), signal.SIGTERM)
    assert processes.ended.is_set()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_runs_end_with_a_search_that_was_killed(tmp_path: Path) -> None:
    """By SIGKILL: its run writes a checkpoint and ends."""
    words = ["method=finetune", "tracking=none", f"output_dir={tmp_path}", "schedule.epochs=5000"]
    words += ["grid=optimizer.lr=0.01,0.1", f"data_dir={tmp_path}"]
    process = Command(["cl_bench.tune", *words], ROOT, dict(os.environ))
    until(lambda: any(f.stat().st_size for f in tmp_path.rglob("metrics.jsonl")), "a first row")
    (status,) = tmp_path.rglob("status.json")
    pid = json.loads(status.read_text())["pid"]
    process.send_signal(signal.SIGKILL)
    finished(process)
    until(lambda: not Path(f"/proc/{pid}").exists(), "its end")
    assert json.loads(status.read_text())["state"] == "stopped"


def test_of_equal_points_the_first_is_taken_and_other_code_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    done: tuple[int, str, str],
) -> None:
    """The record's sources are not those of now: its row says so, on the terminal and on disk."""
    file, _ = asked(tmp_path, monkeypatch), Runs(monkeypatch, done, done)
    tune.main()
    said = capsys.readouterr()
    assert "made by other code" in said.out and "'made by other code': 'cl_bench.c" in said.err
    found: Any = OmegaConf.to_object(OmegaConf.load(file))
    assert found["values"] == {"optimizer.lr": 0.1}
    assert found["evidence"]["trials"][0]["made by other code"] == "cl_bench.core.learner"


def test_a_missing_accuracy_is_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: tuple[int, str, str]
) -> None:
    record = next(tmp_path.rglob("record.json"))
    record.write_text(record.read_text().replace('"ACC": 0.5', '"ACC": null'))
    file, _ = asked(tmp_path, monkeypatch), Runs(monkeypatch, done)
    with pytest.raises(UserError, match="measured no ACC; nothing was written"):
        tune.main()
    assert not file.exists()


def test_optuna_is_told_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: tuple[int, str, str]
) -> None:
    """FAIL, and no accuracy, where training diverged."""
    told: list[Any] = []
    fail = SimpleNamespace(TrialState=SimpleNamespace(FAIL="FAIL"))
    study = SimpleNamespace(
        ask=lambda: SimpleNamespace(suggest_categorical=lambda key, values: values[0]),
        tell=lambda trial, *value, state=None: told.append((value, state)),
    )
    optuna = SimpleNamespace(
        trial=fail,
        create_study=lambda **_: study,
        samplers=SimpleNamespace(TPESampler=lambda seed: None),
        logging=SimpleNamespace(set_verbosity=lambda _: None, ERROR=0),
    )
    monkeypatch.setattr(optuna_search, "import_module", lambda name: optuna)
    asked(tmp_path, monkeypatch)
    Runs(monkeypatch, DIVERGED, done)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "strategy=optuna", "trials=2"])
    tune.main()
    assert told == [((), "FAIL"), ((0.5,), None)]


@pytest.mark.parametrize("text", ["", "values: [1]", "values: {a: 1}\nevidence: 5", "{", "\x00"])
def test_a_damaged_file_of_values_is_named(text: str, tmp_path: Path) -> None:
    file = tuned.values_file(tmp_path, "pmnist5k", "data", "ewc")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(
        UserError, match=r"ewc\.yaml is damaged; tune again, or set the values as overrides$"
    ):
        tuned.apply(composed("method=ewc"), file, [])
