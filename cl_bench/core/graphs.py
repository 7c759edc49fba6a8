"""CUDA graphs: the kernels of a function, launched all at once from then on.

A kernel of a small network takes less time than its launch from Python. A graph has the launches of
a whole step, with the addresses of all tensors and the values of all numbers that the step had when
it was captured. `engine.planned_steps` makes sure that these are right for all steps of a task.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Generator, Tensor

StepFunction = Callable[[], Tensor]  # -> the loss


class Graphs:
    """Captures steps on a stream of their own, as PyTorch requires it.

    draws  the generator of the device that a step may draw from
    """

    def __init__(self, draws: Generator) -> None:
        self.draws, self.stream = draws, torch.cuda.Stream(draws.device)

    def warm_up(self, step: StepFunction) -> Tensor:
        """Take a step on the stream, so that its kernels and workspaces are there already."""
        before = torch.cuda.current_stream(self.draws.device)
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            loss = step()
        before.wait_stream(self.stream)
        return loss

    def capture(self, step: StepFunction) -> StepFunction:
        """A function that repeats a step by its kernels alone; nothing is computed yet.

        The loss that it returns lies at the same address each time.
        """
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.draws)
        collects = gc.isenabled()
        gc.disable()  # freeing another graph is not allowed meanwhile
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                loss = step()
        finally:
            if collects:
                gc.enable()

        def replayed() -> Tensor:
            graph.replay()
            return loss

        return replayed
