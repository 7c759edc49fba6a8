"""Which option of a memory says how large it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES = ("per_class", "capacity", "per_task")  # samples of each class, in all, of each task


def size_key(options: Mapping[str, Any]) -> str:
    """The size that is in use: of those that a buffer's options have, the first that is not null.

    `capacity` where all are null: the memory has no limit.
    """
    return next((key for key in SIZES if options.get(key) is not None), "capacity")
