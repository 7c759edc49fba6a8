"""Who may import whom, and who may touch the machine (house rules, by the syntax tree)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cl_bench"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [  # a file imports from its own layer's left, or from its own folder where listed
    {"types", "bounds", "files", "escape", "metrics", "optim", "proximal"},
    {"flat", "criteria", "buffer", "data", "models"},
    {"chain", "backward", "lowrank"},
    {"learner", "inner"},
    {"curvature", "growth", "rows"},
    {"methods"},
    {"evaluation", "warm_up"},
    {"experiment", "checkpoint"},
    {
        "record",
        "folder",
        "resume",
        "source_code",
        "disparity",
        "tuned",
        "runtime",
        "figures",
        "tracking",
        "present",
        "schema",
        "option_types",
        "interfaces",
        "size",
        "idle",
        "optimizer_trial",
        "hydra_errors",
        "errors",
        "combinations",
        "config",
        "parts",
    },
    {"host", "report", "studies", "failures", "execution"},
    {"run"},
    {"axis", "search"},
    {"trials"},
    {"tune", "list"},
]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}
TOGETHER = {
    "data",
    "models",
    "curvature",
    "studies",
    "report",
}  # folders whose files may use each other
ONLY = {  # a foreign package and the files that may import it
    "hydra": {
        "failures",
        "run",
        "config",
        "combinations",
        "schema",
        "hydra_errors",
        "interfaces",
        "size",
        "idle",
        "optimizer_trial",
        "studies/sweeps",
        "axis",
        "search",
        "tune",
        "list",
    },
    "omegaconf": {
        "hydra_errors",
        "size",
        "failures",
        "run",
        "execution",
        "config",
        "parts",
        "search",
        "studies/sweeps",
        "tune",
        "tuned",
    },
    "wandb": {"tracking"},
    "numpy": {"data/decode", "data/pickles", "data/readers", "report/charts"},
    "PIL": {"data/decode"},
    "pandas": {"folder", "report/__main__", "report/forms", "tune"},
    "matplotlib": {"figures", "report/charts"},
    "jinja2": {"report/page"},
    "rich": {"present", "list"},
}
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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    part = part_of(path)
    for module in imports(path):
        if not module.startswith("cl_bench.") or part == "__init__":
            continue
        other = module.split(".")[1]
        if other == part:
            base = module.startswith("cl_bench.methods.base.")
            assert part in TOGETHER or base, f"{part} imports sideways: {module}"
        elif other in LEVEL:
            same = LEVEL[other] == LEVEL[part] and part not in {"data", "models", "flat"}
            assert LEVEL[other] < LEVEL[part] or same, f"{part} imports upward: {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_foreign_packages_stay_in_their_file(path: Path) -> None:
    for module in imports(path):
        top = module.split(".")[0]
        assert name_of(path) in ONLY.get(top, {name_of(path)}), f"{name_of(path)} imports {top}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_runtime_touches_the_machine(path: Path) -> None:
    if name_of(path) == "runtime":
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
            documented = ast.get_docstring(node) or ""
            assert length - documented.count("\n") <= 45, f"{name_of(path)}: {node.name} {length}"


def test_start_up_is_lean() -> None:
    """What a run needs at its end, or not at all, is not imported at its start."""
    import subprocess
    import sys

    heavy = ("wandb", "matplotlib", "pandas", "torchvision", "sklearn", "PIL", "rich")
    code = f"import sys, cl_bench.run; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_there_is_no_utils() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common"}]
