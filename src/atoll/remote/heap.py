"""What the C library keeps of freed memory: by thread, so that chunks that pass between threads would leave megabytes in each."""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8  # of glibc's mallopt


def share(arenas: int = 2) -> None:
    """Let the threads that begin from now on share so many heaps; of the whole process, and nothing where it has no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, arenas)
