"""Ctrl-C and termination as a request to stop after the step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers the first SIGINT or SIGTERM; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal to stop for, equal on every process; 0 for none."""
        if accelerator.num_processes == 1:
            return self.signal
        mine = torch.tensor([self.signal], device=accelerator.device)
        return int(accelerator.gather(mine).max())  # type: ignore[union-attr]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._release()

    def _release(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
