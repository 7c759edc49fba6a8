"""The README and the worked examples of the tutorials, as a reader would follow them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, composed, finished, names
from forks import Command

from cl_bench.report.results_table import read

README = (ROOT / "README.md").read_text()
TUTORIALS = {
    name: (ROOT / f"docs/tutorials/{name}.md").read_text()
    for name in ("method", "dataset", "results")
}
FILES = ("cl_bench/data/stripes.py", "conf/dataset/stripes.yaml")


def block(tutorial: str, file: str) -> str:
    """The code that a tutorial says a file holds."""
    page = TUTORIALS[tutorial]
    found = re.search(rf"`{re.escape(file)}`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
    assert found is not None, f"docs/tutorials/{tutorial}.md has no {file}"
    return found[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the examples' files in their places."""
    root = tmp_path_factory.mktemp("copy")
    for part in ("cl_bench", "conf", "tests"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        (root / file).write_text(block("dataset", file))
    for file, place in (
        ("anchor.py", "cl_bench/methods"),
        ("conf/method/anchor.yaml", "conf/method"),
    ):
        text = block("method", f"my_methods/{file}").replace("my_methods", "cl_bench.methods")
        (root / place / Path(file).name).write_text(text)
    return root


def ran(copy: Path, *overrides: str) -> list[dict[str, Any]]:
    """The records of `python -m cl_bench.run -m ...` there."""
    return told(copy, *overrides)[1]


def told(copy: Path, *overrides: str) -> tuple[str, list[dict[str, Any]]]:
    """What the command prints, and the records that it names."""
    small = ("dataset.tasks=2", "dataset.train_per_task=200", "tracking=none", "runtime.threads=1")
    here = {"PYTHONPATH": str(copy), "CL_BENCH_DATA": str(copy / "cache")}
    words = ["cl_bench.run", "-m", *small, *overrides]
    code, out, err = finished(Command(words, copy, os.environ | here))
    assert code == 0, err
    folders = re.findall(r"files: (\S+)", out)
    found = [json.loads((copy / folder / "record.json").read_text()) for folder in folders]
    return out, found


def test_a_method_of_this_repository_is_tested_by_itself(copy: Path) -> None:
    """As the tutorial says: with its two files in their places, the contract takes it."""
    words = ["pytest", "-q", "-p", "no:cacheprovider", "tests/test_contract.py", "-k", "anchor"]
    code, out, _ = finished(Command(words, copy, os.environ | {"PYTHONPATH": str(copy)}))
    assert code == 0 and "failed" not in out, out


def test_the_example_data_set_is_learned(copy: Path) -> None:
    """Three tasks of two widths each: far better than chance, which is a half."""
    (record,) = ran(copy, "dataset=stripes", "dataset.tasks=3", "method=ewc", "schedule.epochs=5")
    assert record["stream"]["classes_of_task"] == [[0, 1], [2, 3], [4, 5]]
    assert record["metrics"]["ACC"] > 0.9
    assert "cl_bench.data.stripes" in record["code"]["files"]


def test_results_are_read_as_the_tutorial_says(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python blocks, one after the other, on the runs of a sweep."""
    records = ran(copy, "method=finetune,er", "seed=0,1", "output_dir=read/outputs")
    code = "\n".join(re.findall(r"```python\n(.*?)```", TUTORIALS["results"], re.DOTALL))
    known: dict[str, Any] = {}
    monkeypatch.chdir(copy / "read")
    source = code.replace("cl_bench.run(", 'cl_bench.run("tracking=none", ')
    exec(compile(source, "results.md", "exec"), known)
    assert len(known["runs"]) == len(records) == 4 and (known["runs"]["state"] == "done").all()
    assert {*known["runs"]["ACC"]} == {record["metrics"]["ACC"] for record in records}
    assert known["loss"].notna().all()
    run, images = known["run"], known["test"].x
    assert known["net"](images / 255).argmax(1).equal(run.predict(images))


def test_every_command_composes() -> None:
    """Each `cl_bench.run` of the README; those of docs/ are tested in test_docs."""
    found = re.findall(r"python -m\s+cl_bench\.run([^`#\n&]*)", README)
    assert len(found) >= 3
    for words in found:
        options = [word for word in words.replace("'", "").split() if "=" in word]
        first = [re.sub(r"^([\w.]+=[^\[,]+),.*", r"\1", option) for option in options]
        composed(*(option for option in first if not option.startswith("hydra")))


OWN_DATA = {"arrays", "folder", "sequence"}  # ways to bring data of one's own


def test_what_it_counts_and_measures_is_so() -> None:
    """The numbers of options, and the speed in results/speed.csv."""
    counted = re.search(r"(\d+) methods, (\d+) curvatures, (\d+) data sets", README)
    assert counted is not None
    data = set(names("dataset")) - OWN_DATA
    there = [len(names("method")), len(names("curvature")), len(data)]
    assert [int(number) for number in counted.groups()] == there
    (row,) = [
        row
        for row in read(ROOT / "results/speed.csv")
        if row.metric == "training speed" and row.row.endswith("over the same tensors, pmnist")
    ]
    assert f"a perceptron trains {row.mean} times as fast".lower() in README.lower()


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert len(links) > 10 and all((ROOT / link).exists() for link in links)


def test_every_row_of_the_results_composes() -> None:
    rows = re.findall(r"^\| `(method=[^`]+)` \|", README, re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        composed("dataset=pmnist", *row.split())
