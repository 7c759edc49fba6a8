"""What a search is: its axes, its points, and what a trial gave (`python -m cl_bench.tune`)."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from torch import Generator

from cl_bench import config
from cl_bench.present import percent
from cl_bench.run import CONF
from cl_bench.types import UserError

STRATEGIES = ("grid", "random", "optuna")
OWN = {"grid": "", "strategy": "grid", "first": "3", "seeds": "0", "trials": "20", "jobs": "1"}
RESERVED = ("seed", "tuned", "evaluation.split", "evaluation.when", "stream.first", "force")
Point = dict[str, str]  # key -> value as it is typed


@dataclass(frozen=True)
class Axis:
    """One key of the search: its values, or an interval."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @classmethod
    def of(cls, override: Override) -> Axis:
        """From Hydra's notation of a sweep."""
        key = override.key_or_group
        if override.is_choice_sweep() or override.is_range_sweep():
            return cls(key, tuple(override.sweep_string_iterator()))
        if not override.is_interval_sweep():
            raise UserError(f"grid: {override.input_line} has one value; give several, or type it")
        span: Any = override.value()
        log = "log" in span.tags
        if not span.start < span.end or (log and span.start <= 0):
            raise UserError(f"grid: {override.input_line}: an interval rises, a log one above 0")
        return cls(key, low=float(span.start), high=float(span.end), log=log)

    def draw(self, share: float) -> str:
        """The value at `share`, in [0, 1), of the axis."""
        if self.values:
            return self.values[int(share * len(self.values))]
        if self.log:
            return f"{self.low * (self.high / self.low) ** share:.6g}"
        return f"{self.low + (self.high - self.low) * share:.6g}"


@dataclass
class Trial:
    """One point, with what its runs gave."""

    point: Point
    accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None

    @property
    def score(self) -> float:
        """The mean ACC over the seeds; minus infinity where a run failed."""
        return -math.inf if self.error or not self.accuracies else mean(self.accuracies)

    def row(self) -> dict[str, Any]:
        several = len(self.accuracies) > 1
        spread = percent(stdev(self.accuracies)) if several else "-"
        found = self.error or percent(mean(self.accuracies))
        return {**self.point, "ACC": found, "sd": spread, "train s": f"{self.seconds:.1f}"}


@dataclass(frozen=True)
class Search:
    """What was asked for."""

    overrides: list[str]
    axes: list[Axis]
    strategy: str
    first: int
    seeds: list[int]
    trials: int
    jobs: int

    @classmethod
    def of(cls, arguments: list[str]) -> Search:
        """From the command line; UserError for what is wrong there."""
        own, overrides = dict(OWN), []
        for argument in arguments:
            key, _, value = argument.partition("=")
            if key in OWN:
                own[key] = value
            elif key in RESERVED:
                raise UserError(f"{key}: the search sets it itself; there are {', '.join(OWN)}")
            else:
                overrides.append(argument)
        parsed = OverridesParser.create().parse_overrides(shlex.split(own["grid"]))
        axes = [Axis.of(override) for override in parsed]
        if not axes:
            raise UserError("grid: missing; for example 'grid=optimizer.lr=0.01,0.1'")
        if own["strategy"] not in STRATEGIES:
            raise UserError(f"strategy={own['strategy']}: must be one of {', '.join(STRATEGIES)}")
        numbers = {k: _whole(k, own[k], 1) for k in ("first", "trials", "jobs")}
        seeds = [_whole("seeds", seed, 0) for seed in own["seeds"].split(",")]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"seeds={own['seeds']}: each seed counts once")
        found = cls(overrides, axes, own["strategy"], seeds=seeds, **numbers)
        found.check()
        return found

    def check(self) -> None:
        """UserError before anything is run."""
        typed = {override.partition("=")[0] for override in self.overrides}
        keys = [axis.key for axis in self.axes]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise UserError(f"grid: {twice[0]} stands in it twice; give all its values at once")
        for axis in self.axes:
            if axis.key in (*config.GROUPS, *config.OPTIONAL, "experiment"):
                raise UserError(f"grid: {axis.key} is a group; search once for each of its options")
            if axis.key in typed or axis.key in RESERVED:
                raise UserError(f"grid: {axis.key} is set elsewhere; let the search choose it")
            if len(set(axis.values)) < len(axis.values):
                raise UserError(f"grid: {axis.key} has a value twice: {', '.join(axis.values)}")
            if self.strategy == "grid" and not axis.values:
                raise UserError(
                    f"grid: {axis.key} is an interval, which strategy=grid cannot enumerate; "
                    "list values, or use strategy=random or optuna"
                )
        config.check(composed(self.command(self.point([0.0] * len(self.axes)), 0)))

    def point(self, shares: Iterable[float]) -> Point:
        return {axis.key: axis.draw(share) for axis, share in zip(self.axes, shares, strict=True)}

    def command(self, point: Point, seed: int) -> list[str]:
        """The overrides of one run."""
        fixed = ["evaluation.split=val", "evaluation.when=final", f"stream.first={self.first}"]
        return [*self.overrides, *fixed, *(f"{k}={v}" for k, v in point.items()), f"seed={seed}"]

    def points(self) -> list[Point]:
        """All of a grid's, or `trials` random ones, drawn from seed 0."""
        if self.strategy == "grid":
            products = itertools.product(*(axis.values for axis in self.axes))
            keys = [axis.key for axis in self.axes]
            return [dict(zip(keys, values, strict=True)) for values in products]
        shares = torch.rand(self.trials, len(self.axes), generator=Generator().manual_seed(0))
        return [self.point(row) for row in shares.tolist()]


def _whole(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{key}={text}: must be an integer, at least {least}")
    return int(text)


def composed(overrides: list[str]) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", overrides)


def choices(overrides: list[str]) -> tuple[str, str, str]:
    """Dataset, scenario and method, as chosen."""
    with initialize_config_dir(CONF, version_base="1.3"):
        found = compose("config", overrides, return_hydra_config=True).hydra.runtime.choices
    return found["dataset"], found["scenario"], found["method"]
