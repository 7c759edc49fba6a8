"""The head of a network: its last layer, which is linear and has a row for each class.

It is the submodule `head`, or the one that the attribute `head_name` names, such as "fc" or
"classifier.6".
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cl_bench.base.exceptions import UserError


def head_name(net: nn.Module) -> str:
    """The name of the head in the network."""
    return getattr(net, "head_name", "head")


def head_of(net: nn.Module) -> nn.Linear:
    """The head of a network."""
    head = net.get_submodule(head_name(net))
    assert isinstance(head, nn.Linear)
    return head


def head_input(net: nn.Module, x: Tensor) -> Tensor:
    """(B, d): the features, by one forward pass. A network may have a method of this name."""
    own = getattr(type(net), "head_input", None)
    if own is not None:
        return own(net, x)
    found: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0])

    hook = head_of(net).register_forward_pre_hook(keep)
    try:
        net(x)
    finally:
        hook.remove()
    return found[-1]


def name_head(net: nn.Module, name: str | None, num_classes: int) -> None:
    """Note the name of a network's head; None: it is `head`.

    Raises UserError where there is no linear layer of this name with a row for each class.
    """
    linear = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    fitting = [n for n, layer in linear.items() if layer.out_features == num_classes]
    wanted = head_name(net) if name is None else name
    if wanted not in fitting:
        known = f"one of {', '.join(fitting)}" if fitting else "another network"
        given = "null" if name is None else name
        raise UserError(
            f"model.head={given}: the network has no linear layer {wanted} with {num_classes} "
            f"outputs, one for each class; use {known}"
        )
    if name is not None:
        net.head_name = name  # type: ignore[assignment]
