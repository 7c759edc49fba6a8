"""The predictions of a run for its test images, and the tables that follow from them.

predictions/task_<t>.npz holds those after task t, an entry for each test image: the `task` that it
belongs to, `label` and `predicted` (class ids), and the `probability` of the predicted class.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from cl_bench.base import files
from cl_bench.base.files import DamagedError

FOLDER = "predictions"
TYPES = {"task": np.int32, "label": np.int32, "predicted": np.int32, "probability": np.float32}


def write(folder: Path, row: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the predictions after task `row` into the folder of a run."""
    content = BytesIO()
    small = {name: np.asarray(arrays[name], dtype=kind) for name, kind in TYPES.items()}
    np.savez_compressed(content, **small)  # type: ignore[arg-type]
    (folder / FOLDER).mkdir(exist_ok=True)
    files.write_bytes(folder / FOLDER / f"task_{row}.npz", content.getvalue())


def read(folder: Path, row: int) -> pd.DataFrame:
    """The predictions after task `row`, a line for each test image.

    Raises FileNotFoundError where they were not kept, and DamagedError where the file is damaged.
    """
    file = folder / FOLDER / f"task_{row}.npz"
    content = file.read_bytes()
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return pd.DataFrame({name: arrays[name] for name in TYPES})
    except (ValueError, KeyError, OSError, EOFError, BadZipFile):
        raise DamagedError(f"{file}: is damaged") from None


def confusion(found: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """(K, K) counts: a row for each true class, a column for each predicted one."""
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (found["label"], found["predicted"]), 1)
    return pd.DataFrame(counts, pd.Index(names, name="true class"), pd.Index(names))


def class_accuracy(found: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """For each class: its test images, the share that is right, and the class taken most often."""
    counts = confusion(found, names).to_numpy()
    images = counts.sum(1)
    wrong = counts - np.diag(counts.diagonal())
    with np.errstate(invalid="ignore"):
        share = counts.diagonal() / images
    mistaken = [names[k] if row[k] else "" for k, row in zip(wrong.argmax(1), wrong, strict=True)]
    columns = {"images": images, "accuracy": share, "most often mistaken for": mistaken}
    return pd.DataFrame(columns, index=pd.Index(names, name="class"))


def task_confusion(found: pd.DataFrame, classes: list[list[int]]) -> pd.DataFrame:
    """(T, T) counts: a row for each tested task, a column for the task of the predicted class.

    `classes` are those of each task; a class of several tasks counts for the first of them.
    """
    owner = {c: task for task, own in reversed(list(enumerate(classes))) for c in own}
    predicted = np.array([owner[c] for c in found["predicted"]])
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counts, (found["task"].to_numpy(), predicted), 1)
    names = [f"task_{t}" for t in range(len(classes))]
    return pd.DataFrame(counts, pd.Index(names, name="tested task"), pd.Index(names))


def tables(found: pd.DataFrame, stream: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables of a run's predictions by their names; `stream` is that of its record.

    How tasks are taken for each other is known where each task has classes of its own.
    """
    names = list(stream["class_names"])
    made = {"confusion": confusion(found, names), "class_accuracy": class_accuracy(found, names)}
    if stream["classes_of_task"] is not None:
        made["task_confusion"] = task_confusion(found, stream["classes_of_task"])
    return made
