"""Options of another package: installed, by --config-dir, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, finished
from forks import Command

from cl_bench.base.exceptions import UserError
from cl_bench.config import folders

PAGE = (ROOT / "docs/tutorials/method.md").read_text()
FILES = ("my_methods/anchor.py", "my_methods/conf/method/anchor.yaml", "tests/test_anchor.py")
SMALL = ("dataset.tasks=2", "dataset.train_per_task=200", "tracking=none", "runtime.threads=1")


def written(root: Path) -> Path:
    """The project of the tutorial."""
    for file in (*FILES, "pyproject.toml"):
        found = re.search(rf"`{re.escape(file)}`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
        assert found is not None, file
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(found[1])
    (root / "my_methods/__init__.py").touch()
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tutorial's package is installed, as a user's environment has it."""
    for needed in ("pip", "hatchling"):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    source, where = written(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--target", str(where))
    command = ["pip", "install", "-q", *offline, str(source)]
    code, out, err = finished(Command(command, source, dict(os.environ)))
    assert code == 0, out + err
    return where


def ran(where: Path, *words: str, module: str = "run", **environment: str) -> str:
    """What a command prints in this folder."""
    here = {"CL_BENCH_DATA": str(where / "cache"), "PYTHONPATH": str(ROOT), **environment}
    process = Command([f"cl_bench.{module}", *words], where, {**os.environ, **here})
    code, out, err = finished(process)
    assert code == 0, err
    return out


def records(out: str, where: Path) -> list[dict[str, Any]]:
    """The records that a command named."""
    found = re.findall(r"files: (\S+)", out)
    return [json.loads((where / folder / "record.json").read_text()) for folder in found]


def test_an_installed_package_is_found_by_all_commands(site: Path, tmp_path: Path) -> None:
    """A sweep, the list, the report, and a run that is loaded from Python."""
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    ran(tmp_path, "-m", "method=anchor,l2", "method.strength=0.5", *SMALL, **here)
    one, other = sorted(
        (json.loads(file.read_text()) for file in tmp_path.rglob("record.json")),
        key=lambda record: record["labels"]["method"],
    )
    assert "my_methods.anchor" in one["code"]["files"]
    assert one["metrics"] == pytest.approx(other["metrics"], abs=0.01, nan_ok=True)
    line = re.search(r"^anchor .*", ran(tmp_path, "method", module="list", **here), re.MULTILINE)
    assert line and line[0].split()[:4] == ["anchor", "data", "task", "class"]
    assert "Anchor: a pull" in line[0]
    assert re.search(r"^ *anchor ", ran(tmp_path, "outputs", module="report", **here), re.MULTILINE)
    code = (
        "import cl_bench; runs = cl_bench.runs('outputs'); "
        "run = cl_bench.load(runs[runs.method == 'anchor'].folder.item()); "
        "print(run.predict(run.stream.tests[0].x).shape)"
    )
    words = [sys.executable, "-c", code]
    there = {**os.environ, **here}
    out = subprocess.run(words, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert out.stdout.split() == ["torch.Size([1000])"], out.stderr


def test_the_method_does_what_it_says(project: Path, tmp_path: Path) -> None:
    """By --config-dir: without strength it is fine-tuning, whose steps only round otherwise."""
    folder = f"--config-dir={project / 'my_methods/conf'}"
    words = ("-m", "method=anchor,l2", "seed=0", *SMALL)
    (plain,) = records(ran(tmp_path, folder, "method=finetune", *SMALL), tmp_path)
    anchor, other = records(ran(tmp_path, folder, *words, "method.strength=0"), tmp_path)
    assert anchor["theta_sha256"] == other["theta_sha256"], "L2 with strength 0 is the same"
    for one, two in zip(anchor["accuracy"][-1], plain["accuracy"][-1], strict=True):
        assert one == pytest.approx(two, abs=0.005)


def test_an_edited_method_is_other_code(project: Path, tmp_path: Path) -> None:
    """A sign is flipped in a file that git does not know: its old result is no longer its own."""
    file = project / "my_methods/anchor.py"
    text, option = file.read_text(), f"--config-dir={project / 'my_methods/conf'}"
    words = (option, "method=anchor", "method.strength=0.3", *SMALL)
    (before,) = records(ran(tmp_path, *words), tmp_path)
    file.write_text(text.replace("alpha=self.strength", "alpha=-self.strength"))
    try:
        out = ran(tmp_path, *words)
        assert records(out, tmp_path) == [before]
        assert "done before by other code (my_methods.anchor differs), not repeated" in out
        (after,) = records(ran(tmp_path, *words, "code_changed=repeat"), tmp_path)
        assert after["theta_sha256"] != before["theta_sha256"]
        assert after["code"]["sha256"] != before["code"]["sha256"]
    finally:
        file.write_text(text)


def test_the_tutorials_own_tests_pass(project: Path) -> None:
    words = ["pytest", "-q", "-p", "no:cacheprovider", "tests"]
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(project)])}
    code, out, _ = finished(Command(words, project, {**os.environ, **here}))
    assert code == 0 and "2 passed" in out, out


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `take_options` changes is put back."""
    monkeypatch.setenv(folders.VARIABLE, "")
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.usefixtures("environment")
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config-dir .*/nope: no such folder"):
        folders.take_options(["--config-dir", str(tmp_path / "nope"), "method=er"])


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("files", "line"),
    [
        ([], "has no options; they are in the folders backbone, buffer, "),
        (["metod/anchor.yaml"], "has no options; they are in the folders "),
        (["method/er.yaml"], r"method/er.yaml is in \S+conf too; give it another name"),
        (["method/a.yaml", "config.yaml"], "config.yaml is in "),
    ],
)
def test_a_folder_without_options_or_with_names_taken(
    files: list[str], line: str, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("# An option\n")
    with pytest.raises(UserError, match=f"--config-dir {tmp_path}: {line}"):
        folders.take_options(["-cd", str(tmp_path)])


@pytest.mark.usefixtures("environment")
def test_an_entry_point_without_a_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = folders.EntryPoint("mine", "no_such_package", folders.ENTRY_POINTS)
    monkeypatch.setattr(folders, "_entry_points", lambda: [wrong])
    folders._checked.cache_clear()
    try:
        with pytest.raises(UserError, match=r"cl_bench\.conf=no_such_package: no such package"):
            folders.all_folders()
    finally:
        folders._checked.cache_clear()


@pytest.mark.usefixtures("environment")
def test_several_folders_and_their_packages(tmp_path: Path) -> None:
    """A package is importable where `conf` is within it, and where it is beside it."""
    for place in ("one/inner/conf", "two/conf"):
        (tmp_path / place / "method").mkdir(parents=True)
    (tmp_path / "one/inner/__init__.py").touch()
    (tmp_path / "one/inner/conf/method/a.yaml").write_text("# A\n")
    (tmp_path / "two/conf/method/b.yaml").write_text("# B\n")
    words = [
        "--config-dir",
        str(tmp_path / "one/inner/conf"),
        "method=a",
        f"-cd={tmp_path}/two/conf",
    ]
    assert folders.take_options(words) == ["method=a"]
    assert folders.all_folders()[1:] == (tmp_path / "one/inner/conf", tmp_path / "two/conf")
    assert {"a", "b", "er"} < {*folders.option_names("method")}
    assert sys.path[-2:] == [str(tmp_path / "one"), str(tmp_path / "two")]
