"""What a search is: its keys and values, its points, and the overrides of its runs."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from omegaconf import OmegaConf
from torch import Generator
from torch.quasirandom import SobolEngine

from cl_bench.base.exceptions import UserError
from cl_bench.config.check import check_config
from cl_bench.config.compose import composed
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import GROUPS, OPTIONAL
from cl_bench.tuning.axis import Axis, parse_overrides

STRATEGIES = ("grid", "random", "sobol", "optuna")
DEFAULTS = {"grid": "", "strategy": "grid", "first": "3", "seeds": "0", "trials": "20", "jobs": "1"}
RESERVED = ("seed", "tuned", "evaluation.split", "evaluation.when", "stream.first", "force")
Point = dict[str, str]  # key -> value as it is written on the command line


@dataclass(frozen=True)
class Search:
    """A search as its command line describes it (`python -m cl_bench.tune --help`)."""

    overrides: list[str]  # those that all runs have in common
    axes: list[Axis]
    strategy: str
    first: int
    seeds: list[int]
    trials: int
    jobs: int

    @classmethod
    def parse(cls, arguments: list[str], from_file: bool = False) -> Search:
        """The search of these arguments; UserError where one is wrong, before anything is run.

        from_file  whether the keys come from a file of spaces: a method may have none there, and
                   keys with one value, which all points have
        """
        given, overrides = _split_arguments(arguments)
        options = DEFAULTS | given
        grid = parse_overrides(options["grid"])
        axes = [Axis.from_override(override, may_be_single=from_file) for override in grid]
        if not axes and not from_file:
            raise UserError("grid: missing; for example 'grid=optimizer.lr=0.01,0.1'")
        strategy = options["strategy"]
        if strategy not in STRATEGIES:
            raise UserError(f"strategy={strategy}: must be one of {', '.join(STRATEGIES)}")
        numbers = {k: _integer(k, options[k], 1) for k in ("first", "trials", "jobs")}
        seeds = [_integer("seeds", seed, 0) for seed in options["seeds"].split(",")]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"seeds={options['seeds']}: a seed is listed twice")
        search = cls(overrides, axes, strategy, seeds=seeds, **numbers)
        if "trials" in given and strategy == "grid":
            raise UserError(
                f"trials={search.trials}: strategy=grid runs all points; leave it out, or use "
                "strategy=sobol, random or optuna"
            )
        if search.jobs > 1 and strategy == "optuna":
            raise UserError(
                f"jobs={search.jobs}: strategy=optuna runs one point after the other; use jobs=1"
            )
        search.check()
        return search

    def check(self) -> None:
        """Raise UserError where a key cannot be searched, or a point is no valid config."""
        overridden = {_key_of(override) for override in self.overrides}
        keys = [axis.key for axis in self.axes]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise UserError(f"grid: {twice[0]} is listed twice; list all its values at once")
        for axis in self.axes:
            if axis.key in (*GROUPS, *OPTIONAL, "experiment"):
                raise UserError(f"grid: {axis.key} is a group; search once for each of its options")
            if axis.key in RESERVED:
                raise UserError(f"grid: {axis.key} is set by the search itself; leave it out")
            if axis.key in overridden:
                raise UserError(
                    f"grid: {axis.key} is also set by an override; leave one of them out"
                )
            if self.strategy == "grid" and not axis.values:
                raise UserError(
                    f"grid: {axis.key} is an interval, which strategy=grid cannot enumerate; "
                    "list values, or use strategy=random, sobol or optuna"
                )
        self.check_points()

    def check_points(self) -> None:
        """Raise UserError where a point is no valid config, or two points are the same config."""
        first, *others = self.points_to_check()
        base, known = composed(*self.overrides_of(first, self.seeds[0])), dict[str, Point]()
        if base.tuned:
            raise UserError(
                "tuned=true: comes with the experiment, and its values are what a search finds; "
                "use an experiment without it, such as experiment=suite/protocol/pmnist"
            )
        for point in (first, *others):
            cfg = base.copy()
            for override in parse_overrides(_written(point)):
                OmegaConf.update(cfg, override.key_or_group, override.value())
            normalise_floats(cfg, check_config(cfg))
            same = known.setdefault(config_hash(cfg), point)
            if same is not point:
                raise UserError(
                    f"grid: {_written(same)} and {_written(point)} are the same config: a value is "
                    "listed twice, or makes no difference"
                )

    def points_to_check(self) -> list[Point]:
        """All points that will be run, where they are known before the search starts.

        Optuna's are not: in their place stand those along each axis, from its first value, at all
        listed values, or at both ends of an interval and between them.
        """
        if self.strategy != "optuna":
            return self.points()
        origin = self.point_at([0.0] * len(self.axes))
        lines = [{**origin, axis.key: v} for axis in self.axes for v in axis.sample_values]
        return _distinct([origin, *lines])

    @property
    def has_one_point(self) -> bool:
        """Whether there is nothing to choose: no key, or keys with one value each."""
        return all(len(axis.values) == 1 for axis in self.axes)

    def point_at(self, shares: Iterable[float]) -> Point:
        """The point at a share in [0, 1) of each axis."""
        pairs = zip(self.axes, shares, strict=True)
        return {axis.key: axis.value_at(share) for axis, share in pairs}

    def overrides_of(self, point: Point, seed: int) -> list[str]:
        """The overrides of the run of one point with one seed."""
        fixed = ["evaluation.split=val", "evaluation.when=final", f"stream.first={self.first}"]
        return [*self.overrides, *fixed, *(f"{k}={v}" for k, v in point.items()), f"seed={seed}"]

    def points(self) -> list[Point]:
        """All combinations of a grid; else `trials` points that are drawn from seed 0.

        A search without keys has one point. Those of strategy=sobol spread evenly over the space
        (scrambled Sobol sequence), those of strategy=random are independent of each other.
        """
        if self.strategy == "grid" or self.has_one_point:
            products = itertools.product(*(axis.values for axis in self.axes))
            keys = [axis.key for axis in self.axes]
            return [dict(zip(keys, values, strict=True)) for values in products]
        if self.strategy == "sobol":
            shares = SobolEngine(len(self.axes), scramble=True, seed=0).draw(self.trials)
        else:
            shares = torch.rand(self.trials, len(self.axes), generator=Generator().manual_seed(0))
        return _distinct([self.point_at(row) for row in shares.tolist()])


def _split_arguments(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of the search, and the overrides of its runs."""
    given: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in given:
            raise UserError(f"{key}: is given twice, {given[key]} and {value}")
        if key in DEFAULTS:
            given[key] = value
        elif _key_of(argument) in RESERVED:
            raise UserError(
                f"{_key_of(argument)}: is set by the search itself; the options of a search are "
                f"{', '.join(DEFAULTS)}"
            )
        else:
            overrides.append(argument)
    return given, overrides


def _key_of(override: str) -> str:
    """The key of an override, without Hydra's prefixes + and ~."""
    return override.partition("=")[0].lstrip("+~")


def _written(point: Point) -> str:
    """A point as it is written in a shell."""
    return shlex.join(f"{key}={value}" for key, value in point.items())


def _distinct(points: list[Point]) -> list[Point]:
    """The points in their order, each once."""
    return list({tuple(point.items()): point for point in points}.values())


def _integer(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) < least:
        raise UserError(f"{key}={text}: must be an integer, at least {least}")
    return int(text)
