"""The README's worked example, as a reader would follow it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, composed

README = (ROOT / "README.md").read_text()


def block(file: str) -> str:
    """The code that the README says a file holds."""
    found = re.search(rf"`{re.escape(file)}`:\n\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None, f"README.md has no {file}"
    return found[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the example's two files in their places."""
    root = tmp_path_factory.mktemp("copy")
    for part in ("cl_bench", "conf"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("cl_bench/methods/anchor.py", "conf/method/anchor.yaml"):
        (root / file).write_text(block(file))
    return root


def ran(copy: Path, *overrides: str) -> list[dict[str, Any]]:
    """The records of `python -m cl_bench.run -m ...` there."""
    return told(copy, *overrides)[1]


def told(copy: Path, *overrides: str) -> tuple[str, list[dict[str, Any]]]:
    """What the command prints, and the records that it names."""
    small = ("dataset.tasks=2", "dataset.train_per_task=200", "tracking=none", "runtime.threads=1")
    command = [sys.executable, "-m", "cl_bench.run", "-m", *small, *overrides]
    here = {"PYTHONPATH": str(copy), "CL_BENCH_DATA": str(copy / "cache")}
    done = subprocess.run(command, cwd=copy, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = re.findall(r"files: (\S+)", done.stdout)
    found = [json.loads((copy / folder / "record.json").read_text()) for folder in folders]
    return done.stdout, found


def test_the_example_method_runs_and_does_what_it_says(copy: Path) -> None:
    """Without strength it is fine-tuning, bit for bit; with it, `l2` (one past task) nearly."""
    (plain,) = ran(copy, "method=finetune")
    anchor, pulled, _, other = ran(copy, "method=anchor,l2", "method.strength=0,1")
    assert anchor["theta_sha256"] == plain["theta_sha256"]
    assert pulled["theta_sha256"] != anchor["theta_sha256"]
    assert pulled["metrics"] == pytest.approx(other["metrics"], abs=0.01, nan_ok=True)


def test_an_edited_method_is_other_code(copy: Path) -> None:
    """A sign is flipped in a file that git does not know: its old result is no longer its own."""
    file = copy / "cl_bench/methods/anchor.py"
    text = file.read_text()
    words = ("method=anchor", "method.strength=0.3")
    (before,) = ran(copy, *words)
    assert "cl_bench.methods.anchor" in before["code"]["files"]
    file.write_text(text.replace("alpha=self.strength", "alpha=-self.strength"))
    try:
        out, (shown,) = told(copy, *words)
        assert shown == before
        assert "done before by other code (cl_bench.methods.anchor differs), not repeated" in out
        (after,) = ran(copy, *words, "code_changed=repeat")
        assert after["theta_sha256"] != before["theta_sha256"]
        assert after["code"]["sha256"] != before["code"]["sha256"]
    finally:
        file.write_text(text)


def test_every_command_composes() -> None:
    """Each `cl_bench.run` of the README, as far as its config: no option there is misspelled."""
    found = re.findall(r"python -m\s+cl_bench\.run([^`#\n&]*)", README)
    assert len(found) > 8
    for words in found:
        options = [
            word for word in words.split() if "=" in word and not re.search(r"[<(]|anchor", word)
        ]
        first = [re.sub(r"^([\w.]+=[^\[,]+),.*", r"\1", option) for option in options]
        composed(*(option for option in first if not option.startswith("hydra")))


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)


def test_every_row_of_the_results_composes() -> None:
    rows = re.findall(r"^\| `(method=[^`]+)` \|", README, re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        composed("dataset=pmnist", *row.split())
