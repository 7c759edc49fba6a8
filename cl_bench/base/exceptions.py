"""The exceptions of this package: errors of the user, and the request to stop a run."""

from __future__ import annotations

import signal


class UserError(ValueError):
    """The config or the data of the user is wrong: shown as one line, with exit code 2."""

    before_training = False  # whether it was raised before the run changed anything in its folder


def one_line(error: BaseException, max_length: int = 160) -> str:
    """The message of an error as one line; the name of its class where the message is empty."""
    return " ".join(str(error).split())[:max_length] or type(error).__name__


DIVERGED = "diverged"  # this word marks the message of a run whose numbers are not finite


def diverged(what: str, task: int) -> UserError:
    """The error for a run in which a loss, a parameter or a logit is not finite."""
    return UserError(
        f"training {DIVERGED} in task {task}: {what}; lower optimizer.lr, or the method's rates "
        "and strength, or take another rule"
    )


class StopRun(BaseException):
    """A signal asked the run to stop, and its checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
