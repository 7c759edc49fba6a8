"""Experience replay whose steps wait: runs that can be interrupted, at little cost."""

from __future__ import annotations

import os
import time

from torch import Tensor

from cl_bench.core.types import Batch, Task
from cl_bench.methods.er import ER


class SlowER(ER):
    """Each step waits for 4 ms. It prints which GPUs its process sees."""

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        print(f"sees GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', 'every')}")

    def observe(self, batch: Batch) -> Tensor:
        time.sleep(0.004)
        return super().observe(batch)
