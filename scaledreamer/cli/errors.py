"""What every command does with errors: one line on stderr and an exit code, no traceback."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

USER_ERROR = 2
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors, so that they end like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def run(command: Callable[[], int | None]) -> int:
    """The exit code of a command: its own, 2 for a user's error, 130 when interrupted.

    SCALEDREAMER_TRACEBACK=1 lets errors through; of several processes only RANK 0 prints.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _print(f"warning: {message}")
        try:
            return command() or 0
        except (ValueError, OSError) as error:
            if os.environ.get("SCALEDREAMER_TRACEBACK") == "1":
                raise
            _print(f"error: {_describe(error)}")
            return USER_ERROR
        except KeyboardInterrupt:
            _print("interrupted")
            return INTERRUPTED


def _describe(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error) or type(error).__name__


def _print(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(" ".join(line.split()), file=sys.stderr, flush=True)
