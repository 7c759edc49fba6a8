"""A run's code: the sources of its targets and what they import, whatever git knows of them."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import composed, forget_sources

from cl_bench.config.check import check_config
from cl_bench.config.nodes import targets
from cl_bench.results import source_code
from cl_bench.results.changed_code import changed_network_code, changed_since, not_found
from cl_bench.results.source_code import Code, code_of

PARTS = {
    "__init__.py": "",
    "method.py": '"""A method."""\nfrom mine.inner import step\n\n\nclass Pull:\n    sign = 1\n',
    "inner.py": "from . import lazy\n\n\ndef step():\n    import mine.deep.leaf\n",
    "lazy.py": "A = 1\n",
    "deep/__init__.py": "",
    "deep/leaf.py": "B = 1\n",
    "other.py": "C = 1\n",
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that is neither ours nor in git."""
    for name, text in PARTS.items():
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path / "mine"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def code(forget: bool = True) -> Code:
    """The code of a run whose method is the package's."""
    if forget:
        forget_sources()
    return code_of([importlib.import_module("mine.method").Pull])


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_what_a_target_imports_is_its_code(mine: Path) -> None:
    names = set(code().files)
    ours = {"mine", "mine.method", "mine.inner", "mine.lazy", "mine.deep", "mine.deep.leaf"}
    assert ours <= names and "mine.other" not in names
    engine = {
        "cl_bench.engine.experiment",
        "cl_bench.core.learner",
        "cl_bench.core.flat",
        "cl_bench.core.optim",
    }
    assert engine <= names
    checks = {
        "cl_bench.config.check",
        "cl_bench.results.tracking",
        "cl_bench.report",
    }
    assert not checks & names and not [n for n in names if n.startswith("torch")]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("method.py", "sign = 1", "sign = -1"),
        ("lazy.py", "A = 1", "A = 2"),
        ("deep/leaf.py", "B = 1", "B = 2"),
    ],
)
def test_an_edit_makes_other_code_and_is_named(mine: Path, file: str, old: str, new: str) -> None:
    before = code()
    edit(mine / file, old, new)
    after = code()
    name = f"mine.{file.removesuffix('.py').replace('/', '.')}"
    assert after.sha256 != before.sha256
    assert after.differences(asdict(before)) == name


def test_changed_sources_are_told_from_those_that_are_not_found(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = asdict(code())
    assert changed_since(recorded) == not_found(recorded) == []
    edit(mine / "lazy.py", "A = 1", "A = 2")
    (mine / "deep/leaf.py").unlink()
    code()
    assert sorted(changed_since(recorded)) == ["mine.deep.leaf", "mine.lazy"]
    assert not_found(recorded) == []
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part != str(mine.parent)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    assert changed_since(recorded) == []
    assert "mine.lazy" in not_found(recorded)
    (mine.parent / "elsewhere/mine").mkdir(parents=True)
    sys.path.append(str(mine.parent / "elsewhere"))
    assert "mine.lazy" in not_found(recorded), "a folder of that name is not the package"
    sys.path.append(str(mine.parent))
    sys.path.remove(str(mine.parent / "elsewhere"))
    importlib.invalidate_caches()
    assert not_found(recorded) == [] and changed_since(recorded), "a folder was added since"
    (mine / "lazy.py").write_text("A = (")
    forget_sources()
    assert "mine.lazy" in changed_since(recorded), "it cannot be parsed"


def test_what_computes_logits_is_told_from_the_rest(mine: Path) -> None:
    """The network's and the transform's classes with what they import, and what changes both."""
    recorded = asdict(code())
    recorded["files"]["cl_bench.models.prepare"] = "other"
    recorded["files"]["cl_bench.engine.execution"] = "other"
    plain: dict[str, Any] = {"model": {"_target_": "mine.method.Pull"}, "dataset": {}}
    assert changed_network_code(recorded, plain) == ["cl_bench.models.prepare"]
    edit(mine / "inner.py", "from . import lazy", "from . import lazy as late")
    code()
    assert changed_network_code(recorded, plain) == ["cl_bench.models.prepare", "mine.inner"]
    plain["model"]["_target_"] = "cl_bench.models.mlp.MLP"
    assert changed_network_code(recorded, plain) == ["cl_bench.models.prepare"]


def test_comments_and_unused_files_make_no_other_code(mine: Path) -> None:
    before = code()
    edit(mine / "method.py", "A method.", "The same method.")
    edit(mine / "lazy.py", "A = 1", "A = 1  # one")
    edit(mine / "other.py", "C = 1", "C = 2")
    assert code() == before


def test_a_helper_outside_the_targets_package_is_its_code(mine: Path) -> None:
    """A single file beside it; what is installed is known by its version."""
    helper = mine.parent / "mine_helper.py"
    helper.write_text("import json\nimport yaml\nrate = 1.0\n")
    edit(
        mine / "inner.py", "from . import lazy", "from . import lazy\nfrom mine_helper import rate"
    )
    importlib.invalidate_caches()
    before = code()
    assert "mine_helper" in before.files and "yaml" in before.packages
    assert "json" not in {*before.files, *before.packages}
    edit(helper, "1.0", "-1.0")
    assert code().differences(asdict(before)) == "mine_helper"


def test_an_installed_package_counts_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_of([Code])
    assert {"torch", "torchvision"} <= {*before.packages}
    monkeypatch.setattr(source_code, "_version", lambda top: "0.1" if top == "torch" else None)
    after = code_of([Code])
    assert after.sha256 != before.sha256 and "torch" in after.differences(asdict(before))


def test_a_module_that_is_loaded_counts_as_it_was_loaded(mine: Path) -> None:
    """A later job of the same process runs what was imported, whatever the file says since."""
    before = code()
    edit(mine / "method.py", "sign = 1", "sign = -1")
    source_code.read_source.cache_clear()
    assert code(forget=False) == before
    assert code() != before, "another process imports it anew"


def test_every_configs_code_is_found() -> None:
    """Of each method its own file; of tracking, which changes no number, none."""
    for name in ("ewc", "halrp", "lamaml"):
        plain = check_config(composed(f"method={name}"))
        files = code_of(targets(plain)).files
        assert f"cl_bench.methods.{name}" in files and "cl_bench.results.tracking" not in files
        assert ("cl_bench.curvature.diagonal" in files) == (name in ("ewc", "halrp"))
        assert not [other for other in files if other.startswith("cl_bench.methods.gem")]


def test_a_run_of_several_codes_is_no_ones_result() -> None:
    now = Code("c", {"m": "3"})
    assert now.with_earlier([]) == {"sha256": "c", "files": {"m": "3"}, "packages": {}}
    joined = now.with_earlier([{"sha256": "a"}, {"sha256": "b"}])
    assert joined["parts"] == ["a", "b", "c"] and joined["sha256"] not in "abc"


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_a_commit_is_clean_only_without_untracked_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> Any:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True)

    package = tmp_path / "cl_bench"
    package.mkdir()
    (package / "results").mkdir()
    (package / "results/source_code.py").write_text("")
    monkeypatch.setattr(source_code, "__file__", str(package / "results/source_code.py"))
    assert source_code.git_commit() is None
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    clean = source_code.git_commit()
    assert clean is not None and len(clean) == 40
    (tmp_path / "outputs").write_text("not a source")
    assert source_code.git_commit() == clean
    (package / "anchor.py").write_text("sign = 1")
    assert source_code.git_commit() == f"{clean}-dirty"
