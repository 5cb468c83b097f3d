"""How the C library hands out memory to tensors on a CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's mallopt parameters."""


def keep_freed_memory() -> bool:
    """Lets freed tensors be used again instead of going back to the system; whether it could.

    By default glibc maps every block above 128 KB anew, and touching fresh pages costs more than
    the arithmetic of small networks: a triplane decoder's forward and backward takes a third of
    the time with this. Resident memory then stays at its peak. Only glibc knows the call.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 << 20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
