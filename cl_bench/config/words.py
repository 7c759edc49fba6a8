"""Values as Hydra reads them in the words of a command line."""

from __future__ import annotations

import json
import os
import re
from typing import Any


def typed(value: Any) -> str:
    """A value as Hydra reads it on a command line.

    Raises TypeError unless it is None, a bool, a number, a text, a path, or a list of these.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(r"[A-Za-z_][\w.:/-]*", value)
    reserved = value.lower() in ("null", "true", "false", "nan", "inf")
    return value if plain and not reserved else json.dumps(value, ensure_ascii=False)
