"""The few exceptions that users meet. Anything else that escapes is a bug and keeps its trace.

Each says what was tried and what was found (the message) and what to do next (the hint), and carries the exit code that the
command line ends with.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """How the `akidb-pipelines` command ends."""

    OK = 0
    CHECK_FAILED = 1
    UNUSABLE_INPUT = 2
    OUTSIDE = 3


class PipelineError(Exception):
    """Something a user can act on.

    Args:
        message: what was tried, on what, and what was found.
        hint: what to do next, in one sentence.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.CHECK_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  what to do: {self.hint}" if self.hint else self.message


class InputError(PipelineError):
    """The caller named something that is not there or is no valid input: a week, a file, a schema, a profile."""

    exit_code = ExitCode.UNUSABLE_INPUT


class CheckError(PipelineError):
    """A check failed: the data is there, and it is wrong."""

    exit_code = ExitCode.CHECK_FAILED


class IntegrityError(CheckError):
    """Bytes are not what their digest says."""


class OutsideError(PipelineError):
    """A service, a permission or room on a disk is missing."""

    exit_code = ExitCode.OUTSIDE
