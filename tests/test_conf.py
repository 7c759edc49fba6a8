"""Every YAML composes and binds; every mistake is one line before any data is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import composed, names
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from cl_bench import list as listing
from cl_bench.base.exceptions import UserError
from cl_bench.config import compose, errors, option_types
from cl_bench.config.arguments import checked_arguments
from cl_bench.config.check import check_config
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import CONF

GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and any(p.glob("*.yaml")))
ELSEWHERE = ("experiment", "method")  # they have tests of their own below
OPTIONS = [(group, name) for group in GROUPS if group not in ELSEWHERE for name in names(group)]


NO_BACKBONE = ["model.pretrained=null"]  # none comes with every model


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes_and_binds(group: str, name: str) -> None:
    extra = ["dataset.split=sample", "dataset.train_per_task=null"]
    extra = extra if (group, name) != ("model", "mlp") else []
    if group == "scenario":
        split = "sample" if name == "data" else "class"
        extra = [f"dataset.split={split}", "dataset.tasks=5", "dataset.train_per_task=null"]
    if group == "dataset":
        extra = ["dataset.source.load._target_=builtins.list"] if name == "arrays" else []
    if group == "backbone" or name.startswith(
        ("resnet18_224", "efficientnet", "torchvision", "timm", "l2p")
    ):
        extra = ["dataset=seqcifar100"]  # they see three channels, or patches of 16 pixels
    if name == "blurry":
        extra = ["dataset=seqmnist5k", "scenario=class"]
    if name == "imagenet32":  # the file of backbone=imagenet32 is for the user to make
        extra = [*extra, *NO_BACKBONE]
    check_config(composed(f"{group}={name}", *extra))


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes_and_binds(name: str) -> None:
    """And its page can be built before the first run of its sweep."""
    row = name.startswith("dlcft/row/")  # for one of DLCFT's protocols
    chosen = f"experiment=[dlcft/data10,{name}]" if row else f"experiment={name}"
    cfg = compose.composed(chosen, with_hydra=True)
    callbacks = compose.take_hydra(cfg).callbacks
    if "study" in callbacks:
        assert instantiate(callbacks.study).title
    check_config(cfg)


@pytest.mark.parametrize("table", [n for n in names("experiment/dlcft") if n.startswith("table")])
def test_dlcfts_tables_take_their_rows(table: str) -> None:
    sweep = OmegaConf.load(CONF / f"experiment/dlcft/{table}.yaml").hydra.sweeper.params
    variant, found = OmegaConf.load(CONF / f"experiment/dlcft/{table}.yaml").hydra.callbacks, []
    rows = sweep["experiment/dlcft/row"].split(",")
    assert set(rows) <= set(names("experiment/dlcft/row"))
    for row in rows:
        cfg = composed(f"experiment=dlcft/{table}", f"experiment/dlcft/row={row}")
        check_config(cfg)
        found.append([OmegaConf.select(cfg, key) for key in variant.study.variant])
    assert all(found.count(values) == 1 for values in found), "a row of the page has one config"


@pytest.mark.parametrize("group", [g for g in listing.GROUPS if g != "experiment"])
def test_every_option_says_what_it_is(group: str) -> None:
    lines = dict(listing.options(group))
    assert lines and all(10 < len(line) <= 110 for line in lines.values()), lines


def test_the_list_of_methods(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["list", "method"])
    listing.main()
    (line,) = [
        row for row in capsys.readouterr().out.splitlines() if row.strip().startswith("osla")
    ]
    assert line.split()[:6] == ["osla", "data", "task", "class", "curvature", "merging"]
    assert "Ritter et al. 2018" in line
    monkeypatch.setattr("sys.argv", ["list", "methods"])
    with pytest.raises(UserError, match="methods: no such group; there are method, dataset"):
        listing.main()


HALRP_METHODS = ["halrp", "apd", "independent", "ewc", "l2", "finetune", "joint"]


@pytest.mark.parametrize("method", HALRP_METHODS)
def test_every_method_of_halrps_tables_takes_its_protocols(method: str) -> None:
    """HALRP itself takes all of them, the others every third."""
    every = names("experiment/halrp/protocol")
    for name in every if method == "halrp" else every[HALRP_METHODS.index(method) % 3 :: 3]:
        check_config(composed(f"experiment=halrp/protocol/{name}", f"method={method}"))


# one dataset for each split, scenario and model that datasets bring
KINDS = ["pmnist5k", "rmnist", "pmnist32", "seqcifar100", "five_datasets", "imagenet32", "seqmit67"]
ALWAYS = "seqcifar100"  # of the others one or two for each method
PAIRS = [
    (method, kind)
    for place, method in enumerate(names("method"))
    for number, kind in enumerate(KINDS)
    if kind == ALWAYS or (place + number) % 5 == 0
]


@pytest.mark.parametrize(("method", "dataset"), PAIRS)
def test_every_method_with_every_kind_of_dataset(method: str, dataset: str) -> None:
    needed = {"dlcft": NO_BACKBONE, "l2p": ["+model.arguments.patch_size=4"]}
    extra = needed.get(method, [])
    plain = check_config(composed(f"method={method}", f"dataset={dataset}", *extra))
    assert plain["dataset"]["name"] == dataset


def test_a_dataset_brings_its_defaults_and_the_command_line_wins() -> None:
    brought = composed("dataset=seqcifar100")
    assert brought.scenario.name == "task" and "ResNet18" in brought.model._target_
    assert brought.dataset.split == "class"
    chosen = composed("dataset=seqcifar100", "scenario=data", "model=mlp", "schedule=multi_epoch")
    assert chosen.scenario.name == "data" and "MLP" in chosen.model._target_
    assert chosen.dataset.split == "sample" and chosen.schedule.epochs == 20
    assert composed("dataset=pmnist").scenario.name == "data"


DLCFT = ["method=dlcft", "model.pretrained=null"]
SI = ["method=si", "method.step=implicit"]
CLASS = ["scenario=class", "dataset=seqcifar100"]
BAD = [
    ("buffer.capacity=abc", "buffer.capacity=abc: must be an integer or null", ["method=er"]),
    ("buffer.capacity=-1", "buffer.capacity=-1: must be at least 1", ["method=er"]),
    ("buffer.capacity=1.5", "buffer.capacity=1.5: must be an integer or null", ["method=er"]),
    ("method.strength=high", "method.strength=high: must be a number", ["method=ewc"]),
    ("method.strength=true", "method.strength=true: must be a number", ["method=ewc"]),
    ("seed=abc", "seed=abc: must be an integer", []),
    ("method.strength=nan", "method.strength=nan: must be finite", ["method=ewc"]),
    ("optimizer.lr=inf", "optimizer.lr=inf: must be finite", []),
    ("merging=sum", "merging: method=dlcft weights the past", DLCFT),
    ("model.head_init=same", "model.head_init=same: class-incremental", [*DLCFT, *CLASS]),
    ("seed=16777216", "seed=16777216: must be at least 0 and below 16777216", []),
    ("~seed", "seed: missing", []),
    ("~method._target_", "method._target_: missing", []),
    ("+sede=1", "sede: no such key; there are scenario, model", []),
    ("+scenario.foo=1", "scenario.foo: no such key; there are name, split, heads, order, live", []),
    ("optimizer.betas=[0.9,x]", "optimizer.betas=[0.9, 'x']: must be", ["optimizer=adam"]),
    ("model.hidden=[-5]", "model.hidden=[-5]: must be between 1 and 65536", []),
    ("dataset.transform.std=[0.0]", "dataset.transform.std=[0.0]: must be above 0", []),
    (
        "buffer.capacity={a:1}",
        "buffer.capacity={'a': 1}: must be an integer or null",
        ["method=er"],
    ),
    ("seed=-1", "seed=-1: must be at least 0", []),
    ("force=1", "force=1: must be true or false", []),
    ("optimizer.weight_decay=x", "optimizer.weight_decay=x: must be a number", []),
    ("dataset.tasks=0", "dataset.tasks=0: must be between 1 and 10000", []),
    ("dataset.order=up", "must be one of natural, random, superclass, uniform", []),
    ("dataset.transform.mean=0", "dataset.transform.mean=0: must be a list of numbers", []),
    ("evaluation.when=later", "must be one of seen, final, last, all", []),
    ("evaluation.holdout=1.5", "evaluation.holdout=1.5: must be above 0 and below 1", []),
    ("runtime.device=tpu", "runtime.device=tpu: must be auto, cpu, cuda, cuda:<number> or mps", []),
    ("runtime.threads=0", "runtime.threads=0: must be between 1 and 1024", []),
    ("model.activation=swish", "must be one of relu, relu6, leaky_relu, elu, gelu, tanh", []),
    ("model.hidden=[100,x]", "model.hidden=[100, 'x']: must be a list of integers", []),
    (
        "+method.lamda=3",
        "method.lamda: no such key; method has curvature, merging, strength",
        ["method=ewc"],
    ),
    ("~buffer.capacity", "buffer.capacity: missing; buffer needs capacity, insert", ["method=er"]),
    ("method._target_=cl_bench.methods.no.No", "method._target_=cl_bench.methods.no.No: ", []),
    (
        "method.buffer=ring",
        "method.buffer=ring: is chosen by the group; use buffer=ring",
        ["method=er"],
    ),
    ("stream.first=21", "stream.first=21: the stream has 20 tasks", []),
    ("dataset.heads=apart", "dataset.heads=apart: with dataset.split=permutation, in scen", []),
    ("scenario.order=[0,2]", "scenario.order=[0, 2]: not each of the tasks 0 to 19 once", []),
    (
        "scenario.order=B",
        "scenario.order=B: of 3 tasks there are A, seed:<n>, or",
        ["dataset.tasks=3"],
    ),
    (
        "method.budget=0.0",
        "method.budget=0.0: with method.pruning=ranks, ranks follow from method.growth alone",
        ["method=halrp", "method.pruning=ranks"],
    ),
    ("method.warm_up=20", "method.warm_up=20: of schedule.epochs=20 some", ["method=halrp"]),
    ("optimizer.weight_decay=0.1", "the method has penalties of its own", ["method=halrp"]),
    ("optimizer.weight_decay=0.1", "the method has penalties of its own", ["method=apd"]),
    ("method.l2=0", "nothing would hold the past", ["method=apd"]),
    ("optimizer._target_=torch.optim.RAdam", "how far a step goes; use one of", ["method=apd"]),
    ("schedule.batch_norm=frozen", "starts every task anew", ["method=independent"]),
    ("schedule.batch_norm=folded", "use frozen or train", ["method=si", "dataset=seqcifar100"]),
    ("runtime.compile=true", "model.dropout=[0.2, 0.2, 0.5, 0.5, 0.5] draws", ["model=alexnet"]),
    ("model.dropout=[1.0]", "must be at least 0 and below 1", ["model=alexnet"]),
    ("method.l1=-1", "method.l1=-1: must be at least 0", ["method=halrp"]),
    ("dataset.heads=shared", "in scenario=class, tasks have their own", ["scenario=class"]),
    ("dataset.order=superclass", "rotations have angles; use natural", ["dataset=rmnist"]),
    ("dataset.order=uniform", "only rotations have angles; use natural", []),
    ("optimizer.momentum=0.5", "momentum=0.5: the method steps by itself", ["method=mer"]),
    ("optimizer=adam", "optimizer._target_=torch.optim.Adam: the method", ["method=emcl"]),
    ("data_dir=${oc.env:NO_SUCH_NAME}", "data_dir: ", []),
    (
        "criterion=scaled_mse",
        "curvature=diag_fisher, labels=empirical: with a squared loss",
        ["method=ewc", "curvature.labels=empirical"],
    ),
    (
        "curvature.negative=raw",
        "curvature.negative=raw: a penalty by negative values",
        ["method=ewc", "curvature=diag_hessian"],
    ),
    (
        "curvature.batch_norm=frozen",
        "curvature.batch_norm=frozen: batch norm's weights would move",
        ["method=osla"],
    ),
    ("optimizer=adam", "method.step=implicit: with optimizer._target_=torch", SI),
    (
        "criterion=scaled_mse",
        "curvature=diag_batched: with a squared loss",
        ["method=ewc", "curvature=diag_batched"],
    ),
    (
        "method.every=2",
        "method.every above 1: with optimizer._target_=torch",
        ["method=ewc", "optimizer=adam", "method.step=explicit"],
    ),
    (
        "+optimizer.nesterov=true",
        "optimizer.nesterov: a penalty's steps are not worked out for it",
        ["method=ewc", "optimizer._target_=torch.optim.SGD"],
    ),
    ("method.temperature=0", "method.temperature=0: must be above 0", ["method=lwf"]),
    ("method.xi=0.0", "method.xi=0.0: must be above 0", ["method=si"]),
    ("merging.decay=5.0", "merging.decay=5.0: must be between 0 and 1", ["method=ewc"]),
    ("optimizer.momentum=1.0", "optimizer.momentum=1.0: must be at least 0 and below 1", []),
    ("curvature.labels=all", "must be one of exact, sampled, empirical", ["method=ewc"]),
    ("curvature.samples=0", "curvature.samples=0: must be at least 1", ["method=ewc"]),
    ("method.source=web", "must be one of new, buffer", ["method=lwf"]),
    ("schedule.batch_norm=off", "must be one of train, frozen, folded", []),
    (
        "optimizer._target_=torch.optim.AdamW",
        "optimizer._target_=torch.optim.AdamW: ",
        ["optimizer=adam"],
    ),
]


@pytest.mark.parametrize(("override", "line", "others"), BAD, ids=[b[0] for b in BAD])
def test_mistakes(override: str, line: str, others: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_config(composed(*others, override))
    said = str(caught.value)
    assert line in said and "\n" not in said


def test_an_integer_names_the_same_config_as_its_fraction() -> None:
    """And reads the same in the record."""
    found = []
    for one, zero in (("1", "0"), ("1.0", "0.0")):
        given = f"method.strength={one}", f"dataset.fraction={one}", f"optimizer.momentum={zero}"
        cfg = composed("method=ewc", "merging=online", f"merging.decay={one}", *given)
        plain = check_config(cfg)
        normalise_floats(cfg, plain)
        found.append((config_hash(cfg), OmegaConf.to_yaml(cfg, resolve=True), repr(plain)))
    assert found[0] == found[1] and "batch_size: 10\n" in found[0][1]


def test_a_curvature_that_is_not_used_names_no_other_run() -> None:
    plain = config_hash(composed("method=si"))
    assert config_hash(composed("method=si", "curvature=kfac", "merging=apart")) == plain
    used = config_hash(composed("method=ewc"))
    assert config_hash(composed("method=ewc", "curvature=kfac")) != used
    assert config_hash(composed("method=ewc", "merging=apart")) != used


def test_an_option_left_idle_names_no_other_run() -> None:
    lamaml = config_hash(composed("method=lamaml"))
    assert config_hash(composed("method=lamaml", "optimizer.lr=5")) == lamaml
    assert config_hash(composed("method=lamaml", "method.rate_lr=5")) != lamaml
    sync = config_hash(composed("method=sync"))
    assert config_hash(composed("method=sync", "optimizer.lr=5")) != sync


def test_a_method_that_cannot_serve_the_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    from cl_bench.methods.er import ER

    monkeypatch.setattr(ER, "scenarios", ("task", "class"))
    line = "scenario=data: ER can be used with scenario=task or scenario=class"
    with pytest.raises(UserError, match=line):
        check_config(composed("method=er"))


HYDRA = [
    ("method=nope", f"method=nope: no such method; there are {', '.join(names('method'))}"),
    (
        "experiment=emcl/nope",
        "no such experiment; in emcl/ there are ablation, ablation_replay, cifar100",
    ),
    (
        "dataset=nope",
        "dataset=nope: no such dataset; there are arrays, cifar100_split, cifar100_superclass",
    ),
    ("method.lamda=3", "method.lamda: no such key of the class EWC; there are curvature, every"),
    (
        "experiment=nope",
        "experiment=nope: no such experiment; there are curvature_quality, der/, dlcft/, emcl/",
    ),
    ("datset=x", "datset: no such key (did you mean dataset?); there are budget_mib, buffer"),
    ("lr=3", "lr: no such key, but optimizer.lr; there are budget_mib, buffer"),
    ("stream.blur=0.3", "stream.blur: no such key, but stream=blurry has it; there are first"),
    (
        "method.buffer=3",
        "method.buffer: no such key of the class Finetune, but method=agem, method=bic, method=der",
    ),
    ("method==er", "method==er"),
    ("method", "method: is not one argument <key>=<value>"),
    (
        "method=er stream.first=2",
        "method=er stream.first=2: is not one argument <key>=<value>: a value",
    ),
    ("experiment/halrp=orders", "experiment/halrp=<option> is written experiment=halrp/<option>"),
    ("model=nope/x", "model=nope/x: no such model; there are alexnet"),
    ("method.x=a b^c", "must be quoted twice, 'method.x=\"a b^c\"'"),
    ("hydra/launcher=nope", "hydra/launcher=nope: no such hydra/launcher; there are cores"),
]


@pytest.mark.parametrize(("override", "line"), HYDRA, ids=[h[0] for h in HYDRA])
def test_hydras_errors_in_one_line(override: str, line: str) -> None:
    others = ["method=ewc"] if "lamda" in override else []
    with pytest.raises(Exception) as caught:
        composed(*others, override)
    said = errors.explain(caught.value)
    assert said is not None and line in said and "\n" not in said


def test_other_errors_are_not_explained_away() -> None:
    assert errors.explain(RuntimeError("a bug")) is None
    wrapped = InstantiationException("Error in call to target 'x':")
    wrapped.__cause__ = KeyError("a bug in a loader")
    assert errors.explain(wrapped) is None


def test_an_error_of_the_users_code_is_described_with_its_place(tmp_path: Path) -> None:
    """Not by the last line of what Hydra makes of it; the place is none within a library."""
    text = "import json\n\ndef load():\n    return json.loads('{')\n"
    (tmp_path / "own_loader.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InstantiationException) as caught:
        patch.syspath_prepend(str(tmp_path))
        instantiate({"_target_": "own_loader.load"})
    line = errors.describe(caught.value)
    assert line.startswith("JSONDecodeError: Expecting property name")
    assert line.endswith(" (own_loader.py, line 4)")
    assert errors.describe(UserError("a\nb")) == r"a\nb"
    assert errors.describe(KeyError("x")) == "KeyError: 'x'"
    assert errors.describe(AssertionError()) == "AssertionError"


def test_a_file_that_python_cannot_read_is_described(tmp_path: Path) -> None:
    (tmp_path / "own_mistake.py").write_text("x = 1\ndef load(:\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InstantiationException) as caught:
        patch.syspath_prepend(str(tmp_path))
        instantiate({"_target_": "own_mistake.load"})
    assert errors.describe(caught.value) == "SyntaxError: invalid syntax (own_mistake.py, line 2)"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        (tmp_path / "file").write_text("")
        (tmp_path / "file" / "outputs").mkdir()
    assert errors.explain(caught.value) == f"{tmp_path}/file/outputs: Not a directory"


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (3, int, True),
        (3, float, True),
        (True, int, False),
        (3.0, int, False),
        (None, int | None, True),
        ("a", int | None, False),
        ([0.9, 0.999], tuple[float, float], True),
        ("x", Any, True),
    ],
)
def test_fits(value: Any, hint: Any, good: bool) -> None:
    assert (option_types.unmet_requirement(value, hint) is None) is good


def test_the_hash_names_what_can_change_a_number() -> None:
    base = config_hash(composed())
    for silent in (
        "seed=7",
        "output_dir=x",
        "data_dir=y",
        "tracking=none",
        "log_every=7",
        "force=true",
    ):
        assert config_hash(composed(silent)) == base, silent
    for loud in ("method=er", "optimizer.lr=0.1", "dataset.seed=1", "runtime.precision=bf16"):
        assert config_hash(composed(loud)) != base, loud
    tied = [config_hash(composed("dataset.seed=${seed}", f"seed={s}")) for s in (0, 1)]
    assert tied[0] == tied[1], "a stream that goes with the seed is one config"
    folders = [config_hash(composed("dataset=folder", f"data_dir={d}")) for d in "ab"]
    assert folders[0] != folders[1], "which folder it is depends on where it is sought"


def test_yaml_is_plain() -> None:
    """Interpolations: of paths, parts of a method, the split, the stream's seed, the batch."""
    allowed = {
        "${data_dir}",
        "${cache_dir}",
        "${curvature}",
        "${merging}",
        "${buffer}",
        "${scenario.split}",
        "${scenario.heads}",
        "${output_dir}",
        "${dataset.seed}",
        "${schedule.batch_size}",
    }
    for path in CONF.rglob("*.yaml"):
        if path.name == "config.yaml":
            continue
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        for value in _leaves(plain):
            assert "${" not in str(value) or value in allowed, f"{path}: {value}"


def _leaves(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [leaf for child in node.values() for leaf in _leaves(child)]
    if isinstance(node, list):
        return [leaf for child in node for leaf in _leaves(child)]
    return [node]


PROTOCOLS = ["data10", "data100", "task10", "class10"]


@pytest.mark.parametrize("way", ["nonlinear", "linear"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dlcfts_tables_are_pairs_of_experiments(protocol: str, way: str) -> None:
    """A protocol alone leaves the method its own network; a second says how baselines train.

    The tables with all their rows are composed by test_dlcfts_tables_take_their_rows.
    """
    both = f"experiment=[dlcft/{protocol},dlcft/{way}]"
    for method in ("finetune", "osla", "er", "dlcft"):
        step = ["method.step=explicit", "method.every=1"] if method == "osla" else []
        plain = check_config(composed(both, f"method={method}", *step))
        assert plain["model"]["linearize"] == (way == "linear")
        assert plain["criterion"]["_target_"].endswith("MSE") == (way == "linear")
        assert plain["dataset"]["transform"]["padding"] == 4
    alone = check_config(composed(f"experiment=dlcft/{protocol}", "method=dlcft"))
    assert alone["model"]["linearize"] and alone["schedule"]["epochs"] == 20
    assert alone["optimizer"]["lr"] == 1e-4


@pytest.mark.parametrize(("key", "hint"), [("capacity", ", but buffer.capacity"), ("nope", "")])
def test_a_part_of_a_method_is_typed_by_its_group(key: str, hint: str) -> None:
    with pytest.raises(Exception, match=r"buffer") as caught:
        composed("method=er", f"method.buffer.{key}=3")
    assert errors.explain(caught.value) == f"method.buffer.{key}: no such key{hint}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("method=der++", "method=der++: no such method (did you mean derpp?)"),
        ("schedule.lr=0.1", "schedule.lr: no such key of the class Schedule, but optimizer.lr"),
        ("model.epochs=4", "model.epochs: no such key of the class MLP, but schedule.epochs"),
        ("stream.foo=2", "stream.foo: no such key; there are first"),
        ("model.seed=2", "model.seed: no such key of the class MLP, but seed; there are"),
        ("model.verbose=1", "model.verbose: no such key of the class MLP; there are"),
        ("schedule._partial_=true", "schedule._partial_: no such key of the class Schedule; there"),
    ],
)
def test_a_wrong_name_is_answered_by_the_right_one(wrong: str, message: str) -> None:
    with pytest.raises(Exception, match=r"override|no such|der") as caught:
        composed(wrong)
    assert (errors.explain(caught.value) or "").startswith(message)


def test_the_sweeps_flag_may_stand_between_overrides() -> None:
    """Hydra takes no override behind a flag that others precede."""
    words = ["-cn", "config", "a=1", "-m", "b=2"]
    assert checked_arguments(words) == ["-cn", "config", "a=1", "b=2", "-m"]
    for fine in (["-m", "a=1"], ["a=1", "b=2"], ["-cn", "config", "-m", "a=1"]):
        assert checked_arguments(fine) == fine


def test_a_value_beside_swept_options_is_a_choice() -> None:
    """Hydra would compose it with the option that no sweep has chosen, which lacks the key."""
    words = ["-m", "method=ewc,er", "method.strength=3", "dataset.tasks=[1,2]", "+a.b=1", "c=1"]
    choices = ["method.strength=choice(3)", "dataset.tasks=choice([1,2])"]
    assert checked_arguments(words) == [*words[:2], *choices, *words[4:]]
    for fine in (["method=ewc", "method.strength=3", "seed=0,1", "-m"], ["method.strength=3"]):
        assert checked_arguments(fine) == fine
