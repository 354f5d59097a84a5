"""Atoll trains and fine-tunes models, large ones above all, across data that may not move.

Every catalogued factory is a name of this package (`from atoll import fedavg, sgd, dirichlet`), found and imported
when it is first asked for; so is `Federation`. `import atoll` itself costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "Federation": "atoll.federation",
    "Result": "atoll.federation",
    "load_job": "atoll.job.build",
    "pipe": "atoll.transforms.pipe",
    "Dataset": "atoll.types",
    "Task": "atoll.types",
    "AtollError": "atoll.errors",
}
# Where a name is of two kinds, the first of these has it (`sgd` is the local fold; the server's is in `server_opt`).
_ORDER = (
    "algorithm",
    "local",
    "dataset",
    "partition",
    "task",
    "model",
    "transform",
    "aggregator",
    "policy",
    "selection",
    "fleet",
)


def __getattr__(name: str) -> Any:
    """The public value of that name, or the submodule, or the factory that the catalog has under it."""
    if name.startswith("_"):
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if importlib.util.find_spec(f"atoll.{name}") is not None:
        return importlib.import_module(f"atoll.{name}")
    from atoll import catalog

    entries = {entry.kind: entry for entry in catalog.named(name)}
    for kind in _ORDER:
        if kind in entries:
            return entries[kind].load()
    raise AttributeError(f"module 'atoll' has no attribute {name!r}; `atoll catalog` lists what it has")


def __dir__() -> list[str]:
    from atoll import catalog

    names = {entry.name for kind in _ORDER for entry in catalog.entries(kind)}
    return sorted({*globals(), *_PLACES, *names})
