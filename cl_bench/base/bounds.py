"""Types with bounds, for the signatures of the classes and functions that a config builds.

The type of an option states its valid values: `capacity: Count | None`. A config is checked by
these types before anything is loaded (`config.schema`).
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

Count = Annotated[int, Ge(1)]
ZeroOrMore = Annotated[int, Ge(0)]
Size = Annotated[int, Ge(1), Le(65_536)]  # width of a layer, size of a kernel
Pixels = Annotated[int, Ge(1), Le(2048)]  # side of an image
Padding = Annotated[int, Ge(0), Le(2048)]  # pixels around an image
Tasks = Annotated[int, Ge(1), Le(10_000)]  # number of tasks
Index = Annotated[int, Ge(0)]
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
AtLeastOne = Annotated[float, Ge(1)]
Share = Annotated[float, Ge(0), Le(1)]  # [0, 1]
Fraction = Annotated[float, Gt(0), Le(1)]  # (0, 1]: a part of something, but not nothing
Part = Annotated[float, Gt(0), Lt(1)]  # (0, 1): a part of something, neither nothing nor all
Factor = Annotated[float, Ge(0), Lt(1)]  # [0, 1): momentum, or the probability of dropout
Seed = Annotated[int, Ge(0), Lt(2**24)]  # `core.runtime` uses the other 8 of 32 bits
Text = Annotated[str, MinLen(1)]
