"""Records below a folder as rows: the runs of one config, or of configs alike in chosen keys."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from cl_bench.base.escape import visible
from cl_bench.config.nodes import Leaves, leaves
from cl_bench.report import code
from cl_bench.report.configs import formatted, resolved, short, shown, varied
from cl_bench.results.record import Records

Record = dict[str, Any]
STREAM = ("dataset.", "scenario.", "stream.first", "evaluation.holdout")  # what all rivals share
LEARNER = ("model.", "schedule.", "criterion.", "optimizer.")  # what rivals may do otherwise
TOLD = ("dataset.tasks", "stream.first", "dataset.train_per_task", "dataset.fraction")
TOLD += ("schedule.epochs", "schedule.batch_size", "model._target_", "optimizer._target_")
TOLD += ("optimizer.lr",)


@dataclass(frozen=True)
class Quantity:
    """A number of a run: how to read it, and which way is better."""

    name: str
    of: Callable[[Record], float | None]
    better: int = 0  # 1: more, -1: less, 0: neither
    digits: int = 2


def _metric(name: str, better: int) -> Quantity:
    return Quantity(name, lambda run: _times(run["metrics"].get(name), 100), better)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


METRICS = (  # in percent
    _metric("ACC", 1),
    _metric("BWT", 1),
    _metric("FWT", 1),
    _metric("forgetting", -1),
    _metric("LA", 1),
    _metric("AIA", 1),
    Quantity("growth", lambda run: _times((run.get("method") or {}).get("growth"), 100), -1),
)
COSTS = (
    Quantity("gradients", lambda run: run.get("gradients_per_sample"), -1, 1),
    Quantity("train s", lambda run: sum(run["measured"]["train_seconds"]), -1, 1),
    Quantity("later / first", lambda run: _later(run["measured"]["train_seconds"]), -1),
    Quantity("peak MiB", lambda run: run["measured"].get("peak_mib"), -1, 0),
    Quantity("state MiB", lambda run: _times(run.get("state_bytes"), 2**-20), -1, 1),
)
HINTS = {
    "ACC": "mean accuracy on all tasks after the last",
    "BWT": "mean of a task's accuracy after the last task less that after its own",
    "FWT": "mean of a task's accuracy before its own training less that at the start",
    "forgetting": "mean of a task's best accuracy before the last task less its last",
    "LA": "mean of a task's accuracy right after its own training",
    "AIA": "mean over time of the mean accuracy on the tasks so far",
    "growth": "numbers added to the first task's network, in percent of it",
    "gradients": "backward passes per training image",
    "train s": "seconds of training in all",
    "later / first": "seconds of a later task, on average, over the first one's",
    "peak MiB": "memory: on CUDA what was allocated, else the whole process",
    "state MiB": "what the method keeps between tasks",
}


def _later(seconds: Sequence[float]) -> float | None:
    """Seconds of a task after the first, on average, over those of the first."""
    first, *later = seconds
    return mean(later) / first if later and first else None


@dataclass(frozen=True)
class Section:
    """What rows must have in common to be compared: the same images, in the same order."""

    dataset: str
    scenario: str
    split: str
    stream: str  # what sets it apart from other streams of the dataset: `dataset.tasks=20`

    @property
    def title(self) -> str:
        """`pmnist, data-incremental, dataset.tasks=20`."""
        parts = [self.dataset, f"{self.scenario}-incremental", self.stream]
        parts += ["validation split"] if self.split == "val" else []
        return ", ".join(filter(None, parts))


def common(rows: list[Row]) -> str:
    """What matters most of a config, as far as all rows share it."""
    configs = [leaves(run["config"]) for row in rows for run in row.runs]
    alike = [key for key in TOLD if len({str(config.get(key)) for config in configs}) == 1]
    backbones = {(run.get("backbone") or {}).get("name", "none") for r in rows for run in r.runs}
    parts = [formatted(configs[0], [key for key in alike if configs[0].get(key) is not None])]
    parts += [f"backbone={backbones.pop()}"] if len(backbones) == 1 else []
    return " ".join(filter(None, parts))


@dataclass(frozen=True)
class Row:
    """Runs that are averaged, in the order of their seeds."""

    section: Section
    method: str
    differs: str  # what sets it apart from the other rows of its section
    runs: list[Record]

    @property
    def name(self) -> str:
        """The method and what is particular."""
        return f"{self.method} {self.differs}".strip()

    @property
    def seeds(self) -> int:
        """How many."""
        return len({run["seed"] for run in self.runs})

    @property
    def other_code(self) -> str:
        """`code.unlike` of its runs."""
        return code.unlike(self.runs)

    @property
    def outdated(self) -> str:
        """`code.changed` of its runs."""
        return code.changed(self.runs)

    @property
    def config(self) -> Leaves:
        """What its runs have in common, but the seed."""
        configs = [leaves(run["config"]) for run in self.runs]
        first = configs[0].items()
        return {k: v for k, v in first if all(str(c.get(k)) == str(v) for c in configs)}

    def by_seed(self, quantity: Quantity) -> dict[int, float]:
        """Seed to number; empty where a run lacks it: means of the other seeds mislead.

        Configs that were pooled are averaged, over the seeds that all of them have.
        """
        found: dict[int, dict[str, float | None]] = defaultdict(dict)
        for run in self.runs:
            found[run["seed"]][run["hash"]] = quantity.of(run)
        configs = len({run["hash"] for run in self.runs})
        whole = {seed: list(own.values()) for seed, own in found.items() if len(own) == configs}
        if any(None in values for values in whole.values()):
            return {}
        return {seed: mean(v for v in values if v is not None) for seed, values in whole.items()}


def runs(found: Records) -> list[tuple[tuple[str, str, str, str], Record]]:
    """Dataset, scenario, method, split and record of every finished run; of copies, one.

    Names come from the record, not from the folder that it lies in.
    """
    every: dict[tuple[Any, ...], tuple[tuple[str, str, str, str], Record]] = {}
    for _, content in found.runs:
        record = visible(content)
        labels = record["labels"]
        split = str(leaves(record["config"]).get("evaluation.split", "test"))
        place = (labels["dataset"], labels["scenario"], labels["method"], split)
        every.setdefault((*place, record["hash"], record["seed"]), (place, record))
    return list(every.values())


def gather(found: Records, by: Sequence[str] = ()) -> list[Row]:
    """The rows of all finished runs, a section after the other.

    Without `by` a row is one config and its seeds, and `differs` tells its config from those of
    the same method, and model, schedule, loss and optimizer from everyone's. With it, a row is all
    runs of a method that are alike in these keys (`curvature` stands for
    `method.curvature._target_`), and `differs` also says over which values it averages.
    """
    places: dict[tuple[str, str, str], list[tuple[str, Record]]] = defaultdict(list)
    for (dataset, scenario, method, split), record in runs(found):
        places[dataset, scenario, split].append((method, record))
    known = {k for own in places.values() for _, run in own for k in leaves(run["config"])}
    by = [resolved(key, known) for key in by]
    rows = []
    for place, own in sorted(places.items()):
        configs = [leaves(run["config"]) for _, run in own]
        streams = [key for key in varied(configs) if _is(key, STREAM) and key not in by]
        sections: dict[Section, list[tuple[str, Record]]] = defaultdict(list)
        for (method, run), config in zip(own, configs, strict=True):
            sections[Section(*place, formatted(config, streams))].append((method, run))
        for section in sorted(sections, key=lambda s: s.stream):
            rows += _rows(section, sections[section], by)
    return rows


def _is(key: str, kinds: tuple[str, ...]) -> bool:
    return key.startswith(kinds)


def _rows(section: Section, own: list[tuple[str, Record]], by: Sequence[str]) -> list[Row]:
    """The rows of one section, a method after the other."""
    everyone = varied([leaves(run["config"]) for _, run in own])
    common = [] if by else [key for key in everyone if _is(key, LEARNER)]
    methods: dict[str, list[Record]] = defaultdict(list)
    for method, run in own:
        methods[method].append(run)
    rows = []
    for method, family in methods.items():
        for differs, alike in _groups(family, by, common):
            seeds = sorted(alike, key=lambda run: run["seed"])
            rows.append(Row(section, method, differs, seeds))
    return rows


def _groups(
    family: list[Record], by: Sequence[str], common: list[str]
) -> list[tuple[str, list[Record]]]:
    """Runs of a method that are averaged, with what sets them apart from its others."""
    found: dict[str, list[Record]] = defaultdict(list)
    for run in family:
        config = leaves(run["config"])
        own = json.dumps([[key in config, config.get(key)] for key in by])
        found[own if by else run["hash"]].append(run)
    configs = {name: leaves(alike[0]["config"]) for name, alike in found.items()}
    if by:
        texts = {name: _pooled(alike, by) for name, alike in found.items()}
    else:
        keys = sorted({*varied(list(configs.values())), *common})
        texts = {name: formatted(config, keys) for name, config in configs.items()}
    twins = [text for text in texts.values() if list(texts.values()).count(text) > 1]
    for name, text in texts.items():  # the same text: a key that one of them alone has
        texts[name] = f"{text} [{found[name][0]['hash']}]".strip() if text in twins else text
    return [(texts[name], alike) for name, alike in found.items()]


def _pooled(alike: list[Record], by: Sequence[str]) -> str:
    """The chosen keys, and over which values of others the row averages."""
    configs: list[Leaves] = [leaves(run["config"]) for run in alike]
    pooled = []
    for key in varied(configs):
        values = sorted({shown(config.get(key)) for config in configs})
        pooled.append(f"{short(key)}={'|'.join(values)}")
    return formatted(configs[0], by) + (f" (over {' '.join(pooled)})" if pooled else "")
