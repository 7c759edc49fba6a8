"""The record of a run, record.json, and reading it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, Len

from cl_bench.base import files
from cl_bench.base.bounds import Share
from cl_bench.base.files import DamagedError
from cl_bench.config.nodes import LABELS
from cl_bench.config.option_types import type_adapter

if TYPE_CHECKING:  # records are read without PyTorch
    from torch import Tensor

FORMAT = 2  # of record.json; records of another format are refused
MAX_NESTING = 40  # levels of objects and lists within a record
Amount = Annotated[float, Ge(0), Le(1e15)]  # seconds, MiB; more is a damaged record
Total = Annotated[int, Ge(0), Le(10**15)]
Number = Annotated[float, Ge(-1e15), Le(1e15)]
Metric = Annotated[float, Ge(-1), Le(1)]  # an accuracy, or a difference of two


@dataclass(frozen=True)
class RunRecord:
    """Everything that is known of a finished run; all but `measured` is reproducible."""

    format: int  # FORMAT
    labels: dict[str, str]  # the chosen options of dataset, scenario and method
    config: dict[str, Any]  # resolved
    hash: str  # of the config (`config_hash`)
    seed: int
    code: dict[str, Any]  # `source_code.Code`
    # of the stream: classes of each task, class names, classes that compete at the end, image
    # counts and shape (C, H, W), SHA-256 and origin of the data
    stream: dict[str, Any]
    accuracy: list[list[Share | None]]  # (T, T), row = after task, column = tested
    initial: list[Share | None]  # (T,), before training
    # ACC, BWT, FWT, forgetting, LA, AIA; ACC_task and AUC where measured; ACC_images and AIA_images
    # where tasks have unequal numbers of test images
    metrics: dict[str, Metric | None]
    parameters: Total
    state_bytes: Total  # of tensors that the method keeps between steps, without the network
    theta_sha256: str  # of the final parameters, of one network or of one for each task
    measured: dict[str, Any]  # seconds, memory, machine, versions, commit
    backbone: dict[str, Any] | None = None  # provenance and SHA-256 of a pre-trained network
    gradients_per_sample: Amount | None = None  # backward passes per training image of the stream
    method: dict[str, Number] | None = None  # `Method.capacity`
    forgetting_of_task: list[float | None] | None = None  # (T - 1,), their mean is `forgetting`
    # with evaluation.every: images so far, and the accuracy on the classes seen so far; AUC is
    # their mean
    along: list[tuple[Total, Share]] | None = None
    # with schedule.patience: the epoch of each task, from 1, whose state was kept
    best_epochs: list[Total] | None = None
    parent: dict[str, Any] | None = None  # hash and seed of the run that it went on from


def read_record(file: Path) -> RunRecord:
    """The record in a file; nothing in it is executed.

    Raises DamagedError, naming the file and the field, where it is no whole record of this format.
    """
    from pydantic import ValidationError

    content = files.read_json(file)
    if content.get("format") != FORMAT:
        raise DamagedError(
            f"{file}: has record format {content.get('format', 1)!r}, this version of cl_bench "
            f"reads {FORMAT}; run it again, or use the version that wrote it"
        )
    if _is_nested_deeper(content, MAX_NESTING):
        raise DamagedError(f"{file}: is damaged (nested more than {MAX_NESTING} deep)")
    place = ""
    try:
        found = type_adapter(RunRecord).validate_json(json.dumps(content), strict=True)
        for place, hint in _inner_types(found).items():
            type_adapter(hint).validate_python(value_or_none(content, place), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([place, *map(str, first["loc"])]).strip(".")
        raise DamagedError(f"{file}: is damaged ({where}: {first['msg']})") from None
    contradiction = next(_contradictions(found), None)
    if contradiction is not None:
        raise DamagedError(f"{file}: is damaged ({contradiction})")
    return found


def _inner_types(found: RunRecord) -> dict[str, Any]:
    """The types of values within the fields of a record, by their dotted places."""
    parts: dict[str, Any] = {f"labels.{name}": str for name in LABELS}
    parts |= {"stream.task_identities": list[int], "measured.peak_mib": Amount}
    parts |= {f"measured.{k}_seconds": Annotated[list[Amount], Len(1)] for k in ("train", "eval")}
    parts |= {"code.sha256": str, "code.files": dict[str, str]}
    if found.backbone is not None:
        parts |= {"backbone.name": str, "backbone.data.name": str, "backbone.accuracy": Share}
        parts |= {"backbone.model": dict[str, Any], "config.model": dict[str, Any]}
    return parts


def _contradictions(found: RunRecord) -> Iterator[str]:
    """What is wrong with a record although its values have the right types."""
    tasks, identities = len(found.initial), found.stream["task_identities"]
    if not tasks or [len(row) for row in found.accuracy] != [tasks] * tasks:
        yield f"accuracy: is not {tasks} rows of {tasks} numbers"
    if len(identities) < tasks or len({*identities}) < len(identities):
        yield f"stream.task_identities: are not those of {tasks} tasks"
    for name in ("ACC", "BWT"):
        if name not in found.metrics:
            yield f"metrics.{name}: is missing"


def value_or_none(node: Any, place: str) -> Any:
    """The value at a dotted place in nested dictionaries; None where it is missing."""
    for name in place.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _is_nested_deeper(content: Any, levels: int) -> bool:
    """Whether dictionaries and lists are nested more than `levels` deep."""
    nodes = [content]
    for _ in range(levels):
        inner = [list(n.values()) if isinstance(n, dict) else n for n in nodes]
        nodes = [child for node in inner if isinstance(node, list) for child in node]
    return any(isinstance(node, dict | list) for node in nodes)


def sha256_of(vectors: Iterable[Tensor]) -> str:
    """The SHA-256 of the bytes of all vectors, one after the other."""
    sha = hashlib.sha256()
    for vector in vectors:
        sha.update(vector.detach().cpu().numpy().tobytes())
    return sha.hexdigest()


def json_value(value: Any) -> Any:
    """A copy of `value` that JSON can hold: NaN becomes None, keys texts, and tuples lists."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(v) for v in value]
    return value
