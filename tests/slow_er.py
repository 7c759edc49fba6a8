"""Experience replay whose steps wait: runs that can be interrupted, at little cost."""

from __future__ import annotations

import time

from torch import Tensor

from cl_bench.core.types import Batch
from cl_bench.methods.er import ER


class SlowER(ER):
    """Each step waits for 4 ms."""

    def observe(self, batch: Batch) -> Tensor:
        time.sleep(0.004)
        return super().observe(batch)
