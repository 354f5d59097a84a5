"""What a run was made with: the versions of packages and the machine, asked without importing anything heavy."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_PACKAGES = ("atoll", "torch", "numpy", "safetensors", "transformers", "peft", "accelerate", "datasets", "pandas", "scikit-learn")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that may change a run's numbers; absent ones are left out.

    >>> versions()["python"] == platform.python_version()
    True
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> str:
    """The operating system, the processors this process may use, and the memory, in one line."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{platform.system()} {platform.release()} {platform.machine()}, {processors} processors, {memory_bytes / 1e9:.0f} GB"
