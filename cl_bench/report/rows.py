"""Runs as rows: the seeds of one config, or all runs of a method alike in chosen keys."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from statistics import mean
from typing import Any

from cl_bench.config.nodes import Leaves
from cl_bench.config.parent import KEY as CONTINUE
from cl_bench.report.configs import (
    format_overrides,
    format_value,
    resolve_key,
    short_key,
    varying_keys,
)
from cl_bench.report.quantities import Quantity
from cl_bench.report.runs import Run, finished_runs, grouped
from cl_bench.report.statistics import Summary, summary
from cl_bench.results.changed_code import changed_since, not_found
from cl_bench.results.records import Records
from cl_bench.results.source_code import listed

# rows of one table have these keys in common
STREAM_KEYS = ("dataset.", "scenario.", "stream.first", "stream.disjoint", "stream.blur")
STREAM_KEYS += ("stream.seed", "stream._target_", "evaluation.holdout")
# where these differ between the methods of a table, every row names them
LEARNER_KEYS = ("model.", "schedule.", "criterion.", "optimizer.", "stream.")
# streams that show the same images in the same order
SEQUENTIAL, JOINT = "cl_bench.data.stream.sequential", "cl_bench.data.stream.joint"
CLEAN = (SEQUENTIAL, JOINT, "cl_bench.data.boundaries.online")
# named above a table where all of its rows share them
HEADLINE_KEYS = ("dataset.tasks", "stream.first", "dataset.train_per_task", "dataset.fraction")
HEADLINE_KEYS += ("schedule.epochs", "schedule.batch_size", "model._target_", "optimizer._target_")
HEADLINE_KEYS += ("optimizer.lr", "schedule.patience", "schedule.holdout", "stream._target_")
HEADLINE_KEYS += ("stream.disjoint", "stream.blur", "stream.boundaries")
USUAL = {"stream._target_": SEQUENTIAL, "stream.boundaries": True}  # not named where all have it


@dataclass(frozen=True)
class Section:
    """What rows have in common that may be compared: the same images in the same order."""

    dataset: str
    scenario: str
    split: str
    stream: str  # tells it from other streams of the data set: `dataset.tasks=20`

    @property
    def title(self) -> str:
        """`pmnist, data-incremental, dataset.tasks=20`."""
        parts = [self.dataset, f"{self.scenario}-incremental", self.stream]
        parts += ["validation split"] if self.split == "val" else []
        return ", ".join(filter(None, parts))


@dataclass(frozen=True, eq=False)
class Row:
    """Runs of a method that are averaged, sorted by seed."""

    section: Section
    method: str
    options: str  # tells it from the other rows of its section
    runs: list[Run]

    @property
    def name(self) -> str:
        """`er optimizer.lr=0.1`."""
        return f"{self.method} {self.options}".strip()

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len({run.seed for run in self.runs})

    @property
    def hashes(self) -> list[str]:
        """The configs of its runs, sorted."""
        return sorted({run.hash for run in self.runs})

    @cached_property
    def differing_modules(self) -> str:
        """The modules that differ where its runs were made by different code; else empty."""
        codes = [run.record.get("code") or {} for run in self.runs]
        parts = any("parts" in code for code in codes)  # it changed while a run was interrupted
        if len({code.get("sha256") for code in codes}) < 2 and not parts:
            return ""
        files = [code.get("files") or {} for code in codes]
        names = {name for hashes in files for name in hashes}
        differing = {n for n in names if len({str(hashes.get(n)) for hashes in files}) > 1}
        return listed(sorted(differing)) or "within a run"

    @cached_property
    def changed_modules(self) -> str:
        """The modules that made some of its runs and have changed since; empty for none."""
        return self._modules(changed_since)

    @cached_property
    def lost_modules(self) -> str:
        """The modules that made some of its runs and are not found here; empty for none."""
        return self._modules(not_found)

    def _modules(self, of_code: Callable[[dict[str, Any]], list[str]]) -> str:
        codes = [run.record.get("code") or {} for run in self.runs]
        return listed(sorted({name for code in codes for name in of_code(code)}))

    @property
    def config(self) -> Leaves:
        """The values that all of its runs share."""
        configs = [run.config for run in self.runs]
        first = configs[0].items()
        return {k: v for k, v in first if all(str(c.get(k)) == str(v) for c in configs)}

    def by_seed(self, quantity: Quantity) -> dict[int, float]:
        """The number of each seed; empty where a run lacks it, as the mean of the others misleads.

        Where several configs are pooled, a seed's number is their mean, over those seeds that all
        of them have.
        """
        seeds: dict[int, dict[str, float | None]] = defaultdict(dict)
        for run in self.runs:
            seeds[run.seed][run.hash] = quantity.read(run.record)
        configs = len(self.hashes)
        whole = {seed: [*by.values()] for seed, by in seeds.items() if len(by) == configs}
        if any(None in values for values in whole.values()):
            return {}
        return {seed: mean(v for v in values if v is not None) for seed, values in whole.items()}

    def summary(self, quantity: Quantity) -> Summary | None:
        """Over the seeds; None where a run lacks the quantity."""
        return summary([*self.by_seed(quantity).values()])


def gather(records: Records, by: Sequence[str] = ()) -> list[Row]:
    """The rows of all finished runs, section by section.

    Without `by` a row is one config with its seeds. Its `options` tell its config from those of the
    same method, and name those of the model, schedule, loss and optimizer that differ within the
    section. With `by` a row is all runs of a method alike in these keys (`curvature` stands for
    `method.curvature._target_`), and its `options` also name the values that are pooled.
    """
    runs = finished_runs(records)
    known = {key for run in runs for key in run.config}
    by = [resolve_key(key, known) for key in by]
    places = grouped(runs, attrgetter("dataset", "scenario", "split"))
    return [row for place in sorted(places) for row in _place_rows(place, places[place], by)]


def _place_rows(place: tuple[str, str, str], runs: list[Run], by: Sequence[str]) -> list[Row]:
    """The rows of a data set, scenario and split: a section for each of its streams."""
    keys = varying_keys([_images(run.config) for run in runs])
    keys = [key for key in keys if key.startswith(STREAM_KEYS) and key not in by]
    streams = grouped(runs, lambda run: format_overrides(_chosen(_images(run.config)), keys))
    return [
        row
        for stream in sorted(streams)
        for row in _section_rows(Section(*place, stream), streams[stream], by)
    ]


def _images(config: Leaves) -> Leaves:
    """The config with one name for all streams that show the same images in the same order."""
    kind = config.get("stream._target_")
    return config | {"stream._target_": SEQUENTIAL} if kind in CLEAN else config


def _chosen(config: Leaves) -> Leaves:
    """The config without the options of the stream that are not set."""
    return {k: v for k, v in config.items() if v is not None or not k.startswith("stream.")}


def _section_rows(section: Section, runs: list[Run], by: Sequence[str]) -> list[Row]:
    """The rows of a section, method by method."""
    configs = [run.config for run in runs]
    # joint training alone does not make the other rows name their stream
    others = [config for config in configs if config.get("stream._target_") != JOINT]
    keys = [] if by else {*varying_keys([*map(_images, configs)]), *varying_keys(others)}
    shared = sorted(key for key in keys if key.startswith(LEARNER_KEYS))
    return [
        Row(section, method, options, sorted(alike, key=attrgetter("seed")))
        for method, family in grouped(runs, attrgetter("method")).items()
        for options, alike in _averaged(family, by, shared)
    ]


def _averaged(
    family: list[Run], by: Sequence[str], shared: list[str]
) -> list[tuple[str, list[Run]]]:
    """The runs of a method that are averaged, each group with its options.

    Groups of equal options get the hash of a config: one of them has a key that the others lack.
    """
    if by:
        groups = [*grouped(family, partial(_values_at, by)).values()]
        options = [_pooled_options(alike, by) for alike in groups]
    else:
        groups = [*grouped(family, attrgetter("hash")).values()]
        configs = [alike[0].config for alike in groups]
        going_on = {CONTINUE for config in configs if CONTINUE in config}  # always named
        keys = {*varying_keys(configs), *shared, *going_on}
        keys = sorted(keys, key=lambda key: (not key.startswith("stream."), key))
        options = [format_overrides(config, keys) for config in configs]
    names = [
        f"{text} [{alike[0].hash}]".strip() if options.count(text) > 1 else text
        for text, alike in zip(options, groups, strict=True)
    ]
    return list(zip(names, groups, strict=True))


def _values_at(keys: Sequence[str], run: Run) -> str:
    return json.dumps([[key in run.config, run.config.get(key)] for key in keys])


def _pooled_options(runs: list[Run], by: Sequence[str]) -> str:
    """The values of the chosen keys, and the values of other keys that are averaged over."""
    configs = [run.config for run in runs]
    pooled = []
    for key in varying_keys(configs):
        values = sorted({format_value(config.get(key)) for config in configs})
        pooled.append(f"{short_key(key)}={'|'.join(values)}")
    return format_overrides(configs[0], by) + (f" (over {' '.join(pooled)})" if pooled else "")


def common_options(rows: list[Row]) -> str:
    """The most important options of a table, as far as all of its rows share them."""
    runs = [run for row in rows for run in row.runs]
    kinds = {run.config.get("stream._target_") for run in runs} - {JOINT, None}
    shared = {"stream._target_": kinds.pop()} if len(kinds) == 1 else {}  # by all but joint
    configs = [_images(run.config) | shared for run in runs]
    alike = [key for key in HEADLINE_KEYS if len({str(config.get(key)) for config in configs}) == 1]
    alike = [key for key in alike if configs[0].get(key) not in (None, USUAL.get(key))]
    if "schedule.patience" not in alike:
        alike = [key for key in alike if key != "schedule.holdout"]
    backbones = {(run.record.get("backbone") or {}).get("name", "none") for run in runs}
    parts = [format_overrides(configs[0], alike)]
    parts += [f"backbone={backbones.pop()}"] if len(backbones) == 1 else []
    return " ".join(filter(None, parts))
