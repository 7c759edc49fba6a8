"""Who may import whom, and who may touch the machine (house rules, by the syntax tree)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cl_bench"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {  # each folder of cl_bench, and the rooms that it may import from; so there is no cycle
    "base": (),
    "models": ("base",),
    "core": ("base", "models"),
    "data": ("base", "core"),
    "curvature": ("base", "core"),
    "probes": ("base", "core", "curvature"),
    "methods": ("base", "core", "models", "curvature"),
    "config": ("base", "core", "data", "models", "curvature", "methods"),
    "results": ("base", "config"),
    "engine": ("base", "core", "methods", "config", "results"),
    "studies": ("base", "core", "models", "curvature", "methods", "results", "engine"),
    "report": ("base", "config", "results"),
    "tuning": ("base", "config", "results"),
    "testing": ("base", "core", "data", "models", "config", "methods", "results", "engine"),
    "api": ("base", "core", "config", "results", "engine", "report"),
}
COMMANDS = {"__init__", "__main__", "run", "list", "tune"}  # modules at the top
ONLY = {  # a foreign package and the files that may import it
    "hydra": {
        "run",
        "engine/sweep_failures",
        "results/sweeps",
        "report/sweep_page",
        "tuning/axis",
        "tuning/command",
    },
    "omegaconf": {"run", "engine/job", "engine/execution", "engine/study", "engine/sweep_failures"}
    | {"report/sweep_page", "tuning/search", "tuning/spaces", "tuning/command", "api/loading"},
    "wandb": {"results/tracking"},
    "numpy": {
        "data/decode",
        "data/pickles",
        "data/readers",
        "data/own",
        "data/split",
        "report/charts",
        "api/loading",
        "results/predictions",
    },
    "PIL": {"data/decode"},
    "pandas": {"results/folder", "report/__main__", "report/formats", "tuning/command"}
    | {"api/loading", "api/tables", "results/predictions", "results/figures", "report/charts"},
    "matplotlib": {"results/figures", "report/charts"},
    "jinja2": {"report/html_page"},
    "rich": {"results/terminal", "list"},
}
ONLY["hydra"] |= {"curvature/penalty", "methods/shared/importance", "data/check"}  # `get_object`
ONLY["hydra"] |= {f"config/{file.stem}" for file in (PACKAGE / "config").glob("*.py")}
ONLY["omegaconf"] |= {f"config/{file.stem}" for file in (PACKAGE / "config").glob("*.py")}
MACHINE = ("torch.cuda", "torch.autocast", "torch.compile", "torch.manual_seed", "random.seed")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def part_of(path: Path) -> str:
    return name_of(path).split("/")[0]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_room_says_what_it_is_for() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*ROOMS}
    assert {path.stem for path in PACKAGE.glob("*.py")} == COMMANDS
    for path in PACKAGE.rglob("*/__init__.py"):
        assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 60, path


def test_rooms_make_no_cycle() -> None:
    order = list(ROOMS)
    for room, below in ROOMS.items():
        assert {*below} <= {*order[: order.index(room)]}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_import_from_rooms_below(path: Path) -> None:
    """Everywhere in a file, also below TYPE_CHECKING; a method from no other method."""
    room = part_of(path)
    if room in COMMANDS:
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "cl_bench" or parts[1] == "__version__":
            continue
        if parts[1] != room:
            assert parts[1] in ROOMS[room], f"{name_of(path)}: {room} may not import {module}"
        elif room == "methods":
            assert parts[2] in ("base", "shared"), f"{name_of(path)} imports {module}"


def test_modules_of_a_room_make_no_cycle() -> None:
    below = {name_of(path): modules_of(path) for path in FILES}
    done: set[str] = set()
    while free := {name for name, used in below.items() if name not in done and used <= done}:
        done |= free
    assert done == {*below}, f"a cycle within {sorted({*below} - done)}"


def modules_of(path: Path) -> set[str]:
    """The modules of ours that a file imports, as `name_of` names them."""
    found = set()
    for module in imports(path):
        place = PACKAGE.parent.joinpath(*module.split("."))
        for file in (place.with_suffix(".py"), place.parent.with_suffix(".py")):
            if module.startswith("cl_bench.") and file.is_file():
                found.add(name_of(file))
                break
    return found - {name_of(path)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_foreign_packages_stay_in_their_file(path: Path) -> None:
    for module in imports(path):
        top = module.split(".")[0]
        assert name_of(path) in ONLY.get(top, {name_of(path)}), f"{name_of(path)} imports {top}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_runtime_touches_the_machine(path: Path) -> None:
    if name_of(path) in ("core/runtime", "core/devices", "core/graphs"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            spelled = ast.unparse(node)
            assert not spelled.startswith(MACHINE), f"{name_of(path)}: {spelled}"
            assert not spelled.endswith(".cuda"), f"{name_of(path)}: {spelled}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 250, name_of(path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 40, f"{name_of(path)}: {node.name} {length}"


HEAVY = ("wandb", "matplotlib", "pandas", "torchvision", "sklearn", "PIL")
QUICK = [  # commands that end before a run is built
    ("cl_bench.run", "method=nope"),
    ("cl_bench.run", "--help"),
    ("cl_bench.list",),
    ("cl_bench.tune", "--help"),
]


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_a_quick_command_imports_no_pytorch(words: tuple[str, ...]) -> None:
    assert not imported(*words) & {"torch", "numpy", *HEAVY}


def test_a_run_is_refused_without_heavy_imports() -> None:
    """A wrong value is looked up in a signature, which needs PyTorch, but nothing else."""
    assert not imported("cl_bench.run", "optimizer.lr=abc") & {"rich", *HEAVY}


def imported(*words: str) -> set[str]:
    """The packages that a command imports."""
    run = [sys.executable, "-X", "importtime", "-m", *words]
    times = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT).stderr
    return set(re.findall(r"^import time:.*\| +(\w+)$", times, re.MULTILINE))


def test_there_is_no_utils() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common"}]
