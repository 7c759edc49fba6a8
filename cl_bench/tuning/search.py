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
from omegaconf import OmegaConf
from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.config.compose import composed
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import GROUPS, OPTIONAL
from cl_bench.results.terminal import percent
from cl_bench.tuning.axis import Axis, parsed

STRATEGIES = ("grid", "random", "optuna")
OWN = {"grid": "", "strategy": "grid", "first": "3", "seeds": "0", "trials": "20", "jobs": "1"}
RESERVED = ("seed", "tuned", "evaluation.split", "evaluation.when", "stream.first", "force")
Point = dict[str, str]  # key -> value as it is typed


@dataclass
class Trial:
    """One point, with what its runs gave."""

    point: Point
    accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None
    other_code: str = ""  # modules in which the sources of its runs differ from those of now

    @property
    def score(self) -> float:
        """The mean ACC over the seeds; minus infinity where a run failed."""
        return -math.inf if self.error or not self.accuracies else mean(self.accuracies)

    def row(self) -> dict[str, Any]:
        several = len(self.accuracies) > 1
        spread = percent(stdev(self.accuracies)) if several else "-"
        found = self.error or percent(mean(self.accuracies))
        row = {**self.point, "ACC": found, "sd": spread, "train s": f"{self.seconds:.1f}"}
        return row | ({"made by other code": self.other_code} if self.other_code else {})


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
        given, overrides = _sorted(arguments)
        own = OWN | given
        axes = [Axis.of(override) for override in parsed(own["grid"])]
        if not axes:
            raise UserError("grid: missing; for example 'grid=optimizer.lr=0.01,0.1'")
        if own["strategy"] not in STRATEGIES:
            raise UserError(f"strategy={own['strategy']}: must be one of {', '.join(STRATEGIES)}")
        numbers = {k: _whole(k, own[k], 1) for k in ("first", "trials", "jobs")}
        seeds = [_whole("seeds", seed, 0) for seed in own["seeds"].split(",")]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"seeds={own['seeds']}: each seed counts once")
        found = cls(overrides, axes, own["strategy"], seeds=seeds, **numbers)
        if "trials" in given and found.strategy == "grid":
            raise UserError(f"trials={found.trials}: strategy=grid runs all points; leave it out")
        if found.jobs > 1 and found.strategy == "optuna":
            raise UserError(f"jobs={found.jobs}: optuna runs one point after the other; use jobs=1")
        found.check()
        return found

    def check(self) -> None:
        """UserError before anything is run."""
        typed = {_bare(override) for override in self.overrides}
        keys = [axis.key for axis in self.axes]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise UserError(f"grid: {twice[0]} stands in it twice; give all its values at once")
        for axis in self.axes:
            if axis.key in (*GROUPS, *OPTIONAL, "experiment"):
                raise UserError(f"grid: {axis.key} is a group; search once for each of its options")
            if axis.key in typed or axis.key in RESERVED:
                raise UserError(f"grid: {axis.key} is set elsewhere; let the search choose it")
            if self.strategy == "grid" and not axis.values:
                raise UserError(
                    f"grid: {axis.key} is an interval, which strategy=grid cannot enumerate; "
                    "list values, or use strategy=random or optuna"
                )
        self.check_points()

    def check_points(self) -> None:
        """UserError where a point is no right config, or where two of them are the same one."""
        first, *others = self.probes()
        base, known = composed(*self.command(first, self.seeds[0])), dict[str, Point]()
        for point in (first, *others):
            cfg = base.copy()
            for override in parsed(_words(point)):
                OmegaConf.update(cfg, override.key_or_group, override.value())
            normalise_floats(cfg, check_config(cfg))
            same = known.setdefault(config_hash(cfg), point)
            if same is not point:
                raise UserError(
                    f"grid: {_words(same)} and {_words(point)} are one config: a value stands "
                    "there twice, or makes no difference"
                )

    def probes(self) -> list[Point]:
        """Points to check: all that will be run; of Optuna's, which are not known, along each axis.

        They have all listed values, and of intervals the ends and a number between.
        """
        if self.strategy != "optuna":
            return self.points()
        origin = self.point([0.0] * len(self.axes))
        lines = [{**origin, axis.key: value} for axis in self.axes for value in axis.samples]
        return _distinct([origin, *lines])

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
        return _distinct([self.point(row) for row in shares.tolist()])


def _sorted(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The search's own options, and overrides of its runs."""
    given: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in given:
            raise UserError(f"{key}: is given twice, {given[key]} and {value}")
        if key in OWN:
            given[key] = value
        elif _bare(argument) in RESERVED:
            raise UserError(
                f"{_bare(argument)}: the search sets it itself; there are {', '.join(OWN)}"
            )
        else:
            overrides.append(argument)
    return given, overrides


def _bare(override: str) -> str:
    """The key of an override, without Hydra's signs for adding and removing."""
    return override.partition("=")[0].lstrip("+~")


def _words(point: Point) -> str:
    """A point as it is typed."""
    return shlex.join(f"{key}={value}" for key, value in point.items())


def _distinct(points: list[Point]) -> list[Point]:
    """The points in their order, each once."""
    return list({tuple(point.items()): point for point in points}.values())


def _whole(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) < least:
        raise UserError(f"{key}={text}: must be an integer, at least {least}")
    return int(text)
