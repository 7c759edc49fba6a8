"""The errors of this package, and the request to stop a run."""

from __future__ import annotations

import signal


class UserError(ValueError):
    """The user's config or data is wrong: shown as one line, exit code 2."""

    before_training = False  # whether a run was refused before anything of it was changed


def one_line(error: BaseException, most: int = 160) -> str:
    """What an error says, on one line of at most so many characters; its class where it is mute."""
    return " ".join(str(error).split())[:most] or type(error).__name__


DIVERGED = "diverged"  # stands in the line of a run whose numbers are not finite


def diverged(what: str, task: int) -> UserError:
    """The error of a run in which a loss, a parameter or a logit is no longer a finite number."""
    return UserError(
        f"training {DIVERGED} in task {task}: {what}; lower optimizer.lr, or the method's rates "
        "and strength, or take another rule"
    )


class StopRun(BaseException):
    """The run was asked to end, and its checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
