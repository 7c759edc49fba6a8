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
    """One key of the search, with a list of values, or without one the interval [low, high]."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False  # whether points are spread evenly on a logarithmic scale

    @classmethod
    def from_override(cls, override: Override, may_be_single: bool = False) -> Axis:
        """The axis of an override in Hydra's notation of sweeps.

        Raises UserError where it has an interval that is empty or infinite, or one value, unless
        it `may_be_single`.
        """
        key = override.key_or_group
        if override.is_choice_sweep() or override.is_range_sweep():
            return cls(key, tuple(override.sweep_string_iterator()))
        if not override.is_interval_sweep():
            if may_be_single and not override.is_delete():
                return cls(key, (override.get_value_element_as_str(),))
            raise UserError(
                f"grid: {override.input_line} has one value; list several, or give it as an "
                "override outside of grid="
            )
        span: Any = override.value()
        log = "log" in span.tags
        rises = span.start < span.end and math.isfinite(span.end - span.start)
        if not rises or (log and span.start <= 0):
            raise UserError(
                f"grid: {override.input_line}: an interval has finite ends and rises; on a "
                "logarithmic scale it starts above 0"
            )
        return cls(key, low=float(span.start), high=float(span.end), log=log)

    @property
    def sample_values(self) -> list[str]:
        """All listed values; of an interval both ends and one number between them."""
        return [*self.values] or [self.value_at(share) for share in (0.0, 0.37, 1.0)]

    def value_at(self, share: float) -> str:
        """The value at a share of the axis: 0 is its beginning, 1 the end of an interval."""
        if self.values:
            return self.values[int(share * len(self.values))]
        if self.log:
            return f"{self.low * (self.high / self.low) ** share:.6g}"
        return f"{self.low + (self.high - self.low) * share:.6g}"


def parse_overrides(text: str) -> list[Override]:
    """The overrides in a text, separated by spaces as in a shell: quotes keep words together."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"grid={text}: {str(error).lower()}") from None
    return OverridesParser.create().parse_overrides(words)
