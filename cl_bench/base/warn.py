"""A warning that points at the user's own line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

PACKAGES = ("cl_bench", "torch")  # whose functions lie between the user's line and the warning


def warn_user(message: str) -> None:
    """Warn at the innermost line outside of this package that led here."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _package(frame) in PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level + 1)


def _package(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]
