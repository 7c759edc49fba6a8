"""A finished run as an object: its record, accuracies, trained network and predictions."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.warn import warn_user
from cl_bench.config.build import recorded_network, recorded_stream, recorded_transform
from cl_bench.core.types import Stream
from cl_bench.results import predictions
from cl_bench.results.changed_code import changed_network_code
from cl_bench.results.folder import accuracy_table
from cl_bench.results.record import RunRecord, read_record
from cl_bench.results.source_code import listed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

CHUNK = 500  # images that pass through the network at once


def load(folder: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> Run:
    """Load a finished run from its folder, .../seed<k>; nothing in its files is executed.

    data_dir  the folder of the data sets on this machine, for `Run.stream`; None: that of the run

    Raises UserError where there is no finished run, or its record is damaged.
    """
    path = files.absolute(folder)
    if not (path / "record.json").is_file():
        there = len(list(path.rglob("record.json"))) if path.is_dir() else 0
        hint = f"; cl_bench.runs({str(folder)!r}) lists the {there} below it" if there else ""
        raise UserError(f"{folder}: no finished run in this folder (record.json){hint}")
    try:
        return Run(path, read_record(path / "record.json"), data_dir)
    except files.DamagedError as error:
        raise UserError(str(error)) from None


class Run:
    """A finished run, as `cl_bench.run` and `cl_bench.load` return it.

    folder  where its files are
    record  everything that is known of it (`RunRecord`)
    """

    def __init__(
        self, folder: Path, record: RunRecord, data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self.folder, self.record, self._data_dir = folder, record, data_dir
        self._networks: dict[str, nn.Module] = {}

    def __repr__(self) -> str:
        labels, metrics = self.record.labels, self.record.metrics
        shown = ", ".join(f"{k} {100 * v:.2f}" for k, v in metrics.items() if v is not None)
        what = f"{labels['method']} on {labels['dataset']}, {labels['scenario']}-incremental"
        return f"<Run {what}, seed {self.record.seed}: {shown} ({self.folder})>"

    @cached_property
    def config(self) -> DictConfig:
        """The whole config: `run.config.optimizer.lr`."""
        return OmegaConf.create(self.record.config)

    @property
    def metrics(self) -> dict[str, float | None]:
        """ACC, ACC_task, BWT, FWT, forgetting, LA, AIA, AUC, ACC_images: fractions, or None.

        None: not measured. results/metrics.py explains each.
        """
        return dict(self.record.metrics)

    @property
    def along(self) -> pd.DataFrame:
        """With evaluation.every: training images so far, and accuracy on the classes seen so far.

        `run.along.accuracy.mean()` is AUC. Without it the table is empty.
        """
        return pd.DataFrame(self.record.along or [], columns=["images", "accuracy"])

    @property
    def accuracy(self) -> pd.DataFrame:
        """The table of accuracy.csv: rows are `initial` and after each task, columns tested tasks.

        What was not measured is NaN; `run.accuracy.iloc[-1].mean()` is ACC.
        """
        return accuracy_table(self.record)

    @cached_property
    def stream(self) -> Stream:
        """The tasks with their images, on the CPU. Warns where the data set has changed."""
        own = self._data_dir
        folders = {} if own is None else {"data_dir": str(files.absolute(own))}
        stream = recorded_stream(self.record.config, **folders)
        if stream.description["sha256"] != self._of_stream("sha256"):
            line = f"{self.folder}: the images or labels of the data set are not those of the run"
            warn_user(f"{line} (their SHA-256 is another)")
        return stream

    def network(self, task: int | None = None) -> nn.Module:
        """The trained network on the CPU, in evaluation mode: normalised images to logits (B, K).

        A method that keeps a network for each task needs `task`, from 0 on. The network of other
        methods is the same for all tasks. `logits` and `predict` take raw pixels instead.

        Warns where the code of the network or the transform was changed since the run was made.
        Raises UserError where the run kept no network (save_network=false).
        """
        name = self._file_of(task)
        if name not in self._networks:
            self._networks = {name: self._loaded(self.folder / name)}  # one at a time
            if changed := changed_network_code(self.record.code, self.record.config):
                line = f"{self.folder}: {listed(changed)} changed since the run was made"
                warn_user(f"{line}; its network may compute other logits")
        return self._networks[name]

    @torch.no_grad()
    def logits(self, images: ArrayLike | Tensor, task: int | None = None) -> Tensor:
        """(N, K) logits of raw images (N, C, H, W) uint8; -inf for classes that do not compete.

        Images are those of `stream.tests[task].x`, or others that look like them: of the data set's
        size, and changed as the task's are (with permuted pixels, say). `task` says which classes
        compete, and is needed in task-IL and by methods with a network for each task.
        """
        x, net, view = self._as_images(images), self.network(task), self._transform.view
        outputs = torch.cat([net(view(part)) for part in x.split(CHUNK)])
        live = torch.full((outputs.shape[1],), -torch.inf)
        live[self._competing(task)] = 0.0
        return outputs + live

    def predict(self, images: ArrayLike | Tensor, task: int | None = None) -> Tensor:
        """(N,) class ids of raw images (N, C, H, W) uint8; arguments as of `logits`.

        `class_names[id]` is a class' name.
        """
        return self.logits(images, task).argmax(1)

    def predictions(self, after: int | None = None) -> pd.DataFrame:
        """A line for each test image: task, label, predicted class, probability and their names.

        They are those after task `after`, from 0 on; None: after the last task. The run must have
        had evaluation.predictions=true, or =each for those after other tasks.
        """
        row = len(self.record.initial) - 1 if after is None else self._checked(after, "after")
        try:
            found = predictions.read(self.folder, row)
        except FileNotFoundError:
            wanted = "true" if after is None else "each"
            before = ", or the run that it goes on from," if self.record.parent else ""
            raise UserError(
                f"{self.folder}: has no predictions after task {row}; make the run{before} with "
                f"evaluation.predictions={wanted}"
            ) from None
        except files.DamagedError as error:
            raise UserError(str(error)) from None
        names, keys = self.class_names, ("label", "predicted")
        return found.assign(**{f"{key}_name": [names[c] for c in found[key]] for key in keys})

    def confusion(self, after: int | None = None) -> pd.DataFrame:
        """(K, K) numbers of test images: a row for each true class, a column for a predicted one.

        It needs what `predictions` needs.
        """
        return predictions.confusion(self.predictions(after), self.class_names)

    def class_accuracy(self, after: int | None = None) -> pd.DataFrame:
        """A row for each class: its test images, its accuracy, and what it is mistaken for most.

        Accuracies are fractions. It needs what `predictions` needs.
        """
        return predictions.class_accuracy(self.predictions(after), self.class_names)

    @property
    def class_names(self) -> list[str]:
        """The name of each class, by its id."""
        return self._of_stream("class_names")

    @cached_property
    def _transform(self) -> Any:
        return recorded_transform(self.record.config)

    def _of_stream(self, key: str) -> Any:
        """A value of the record's `stream`; UserError where an earlier version did not write it."""
        if key not in self.record.stream:
            raise UserError(
                f"{self.folder}: was made by an earlier version, whose records have no {key}; "
                "make it again with force=true"
            )
        return self.record.stream[key]

    def _competing(self, task: int | None) -> list[int]:
        """The classes that compete for images of a task after the last task."""
        classes: list[list[int]] = self._of_stream("classes_at_end")
        if task is None and any(row != classes[0] for row in classes):
            raise UserError(
                f"task: classes compete within a task here, so name it (0 to {len(classes) - 1})"
            )
        return classes[0 if task is None else self._checked(task)]

    def _checked(self, task: int, name: str = "task") -> int:
        tasks = len(self.record.initial)
        if task not in range(tasks):
            raise UserError(f"{name}={task}: the run has the tasks 0 to {tasks - 1}")
        return int(task)

    def _file_of(self, task: int | None) -> str:
        """The name of the file with the network that predicts for a task."""
        if (self.folder / "model.safetensors").is_file():
            return "model.safetensors"
        if not (self.folder / "model.task0.safetensors").is_file():
            raise UserError(
                f"{self.folder}: has no network; the run had save_network=false, or the file was "
                "removed: force=true makes it again"
            )
        if task is None:
            last = len(self.record.initial) - 1
            raise UserError(f"task: this run has a network for each task; name one (0 to {last})")
        return f"model.task{self._checked(task)}.safetensors"

    def _loaded(self, file: Path) -> nn.Module:
        """A new network with the parameters and buffers in `file`."""
        from safetensors.torch import load_file

        shape = self._transform.view(torch.zeros(1, *self._of_stream("image_shape")).byte()).shape
        net = recorded_network(self.record.config, shape[1:], len(self.class_names))
        try:
            net.load_state_dict(load_file(file))
        except Exception as error:  # whatever a damaged file raises
            raise UserError(f"{file}: is damaged, or of another network ({error})") from None
        return net.eval().requires_grad_(False)

    def _as_images(self, images: ArrayLike | Tensor) -> Tensor:
        """The images as a tensor; UserError where they are not the pixels that the run had."""
        x = torch.as_tensor(images)
        shape = tuple(self._of_stream("image_shape"))
        if x.dtype != torch.uint8 or x.shape[1:] != shape or x.ndim != 4:
            raise UserError(
                f"images: {tuple(x.shape)} {x.dtype}; wanted are raw pixels (N, "
                f"{', '.join(map(str, shape))}) torch.uint8, as in run.stream.tests[0].x"
            )
        return x.cpu()
