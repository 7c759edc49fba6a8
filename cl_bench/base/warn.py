"""A warning that points at the user's own line."""

from __future__ import annotations

import sys
import warnings
from itertools import count

PACKAGES = ("cl_bench", "torch")  # whose functions lie between the user's line and the warning


def warn_user(message: str) -> None:
    """Warn at the innermost line outside of this package that led here."""
    for level in count(1):
        module = sys._getframe(level).f_globals.get("__name__", "")
        if module.partition(".")[0] not in PACKAGES:
            break
    warnings.warn(message, stacklevel=level + 1)
