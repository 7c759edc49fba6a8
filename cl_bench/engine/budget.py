"""The limit that a run may set on the memory that its method keeps besides the network.

Stored samples, anchors, curvatures, copies of the network and grown parameters count alike: all
tensors of the method's state, as in a checkpoint (`checkpoint.state_bytes`).
"""

from __future__ import annotations

from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.engine.checkpoint import bytes_of

MIB = 2**20
SHOWN = 3  # parts of the state that the message names, the largest first


def require_state_within(budget_mib: float | None, state: dict[str, Any], when: str) -> None:
    """Raise UserError where a method's state is more than `budget_mib`, naming its largest parts.

    when  such as `after task 3`
    """
    if budget_mib is None:
        return
    parts = {name: bytes_of(value) for name, value in state.items()}
    largest = sorted((name for name in parts if parts[name]), key=lambda name: -parts[name])
    named = ", ".join(f"{name} {parts[name] / MIB:.4g}" for name in largest[:SHOWN])
    require_within(budget_mib, bytes_of(state), when, f" ({named})")


def require_within(budget_mib: float | None, kept: int, when: str, parts: str = "") -> None:
    """Raise UserError, saying by how much, where `kept` bytes are more than `budget_mib`."""
    if budget_mib is not None and kept > budget_mib * MIB:
        raise UserError(
            f"budget_mib={budget_mib:g}: {when} the method keeps {kept / MIB:.4g} MiB besides the "
            f"network{parts}, {kept / MIB - budget_mib:.4g} over; let it keep less, or raise the "
            "budget"
        )
