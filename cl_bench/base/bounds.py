"""Bounds of options, for the signatures of what a config's `_target_` names.

An option's type says which values it may have: `capacity: Count | None`. The config is checked by
it before anything is loaded (`schema`), and a reader of the constructor sees it at once.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

Count = Annotated[int, Ge(1)]
Size = Annotated[int, Ge(1), Le(65_536)]  # of a layer, a kernel
Pixels = Annotated[int, Ge(1), Le(2048)]  # of an image's side
Padding = Annotated[int, Ge(0), Le(2048)]
Tasks = Annotated[int, Ge(1), Le(10_000)]
Index = Annotated[int, Ge(0)]
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]  # between 0 and 1, both included
Fraction = Annotated[float, Gt(0), Le(1)]
Part = Annotated[float, Gt(0), Lt(1)]  # some, and not all
Factor = Annotated[float, Ge(0), Lt(1)]  # momentum, the probability of dropout
Seed = Annotated[int, Ge(0), Lt(2**24)]  # the CPU's generator tells that many apart for each use
Text = Annotated[str, MinLen(1)]
