"""An axis of a search: one key of the config, and the values that it may take."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from cl_bench.base.exceptions import UserError


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
        rises = span.start < span.end and math.isfinite(span.end - span.start)
        if not rises or (log and span.start <= 0):
            raise UserError(f"grid: {override.input_line}: an interval rises, a log one above 0")
        return cls(key, low=float(span.start), high=float(span.end), log=log)

    @property
    def samples(self) -> list[str]:
        """Its values, or the ends of the interval and what lies between them."""
        return [*self.values] or [self.draw(share) for share in (0.0, 0.37, 1.0)]

    def draw(self, share: float) -> str:
        """The value at `share`, in [0, 1), of the axis."""
        if self.values:
            return self.values[int(share * len(self.values))]
        if self.log:
            return f"{self.low * (self.high / self.low) ** share:.6g}"
        return f"{self.low + (self.high - self.low) * share:.6g}"


def parsed(grid: str) -> list[Override]:
    """Hydra's overrides in a text, in which quotes hold words together."""
    try:
        words = shlex.split(grid)
    except ValueError as error:
        raise UserError(f"grid={grid}: {str(error).lower()}") from None
    return OverridesParser.create().parse_overrides(words)
