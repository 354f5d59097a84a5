"""Label skew: each label is spread over the clients in proportions drawn from Dir(alpha).

Hsu, Qi & Brown 2019, arXiv:1909.06335, and Yurochkin et al. 2019, arXiv:1905.12022, whose draw by label this is: for
each label k, p_k ~ Dir_N(alpha, ..., alpha), and client i holds the share p_ki of that label's examples.
"""

from __future__ import annotations

import numpy as np
import torch

from atoll import rng
from atoll.data.partition.parts import Columns, Part, Partition, classes_of, several
from atoll.errors import ConfigError

_DRAWS = 100


def dirichlet(alpha: float = 0.5, min_examples: int = 1, label: str = "y") -> Partition:
    """Label skew by a Dirichlet draw: the smaller alpha, the fewer labels a client holds.

    Parts smaller than `min_examples` make it draw again, 100 times at most.

    Raises:
        ConfigError: alpha is not positive, there are too few examples, or no draw gave every client enough.

    >>> labels = torch.arange(100) % 10
    >>> parts = dirichlet(alpha=0.3)({"y": labels}, 4, 0)
    >>> sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(100))
    True
    """
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"alpha is {alpha}, but a Dirichlet distribution needs a number above 0.")

    def partition(columns: Columns, clients: int | None, seed: int) -> list[Part]:
        classes = classes_of(columns, label)
        number = several(clients, len(classes), min_examples)
        random = np.random.default_rng(rng.seed(seed, "dirichlet"))
        rows_of = [np.flatnonzero(classes == k) for k in range(int(classes.max()) + 1)]
        for _ in range(_DRAWS):
            owner = np.empty(len(classes), dtype=np.int64)
            for rows in rows_of:
                shares = random.dirichlet(np.full(number, alpha))
                cuts = np.floor(np.cumsum(shares)[:-1] * len(rows) + 0.5).astype(np.int64)
                owner[random.permutation(rows)] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
            if np.bincount(owner, minlength=number).min() >= min_examples:
                return _parts(owner, number)
        raise ConfigError(
            f"no draw of dirichlet(alpha={alpha}) gave each of {number} clients {min_examples} or more of {len(classes)} "
            "examples; use a larger alpha, fewer clients or a smaller min_examples."
        )

    return partition


def _parts(owner: np.ndarray[tuple[int], np.dtype[np.int64]], number: int) -> list[Part]:
    by_owner = torch.from_numpy(np.argsort(owner, kind="stable"))
    sizes = np.bincount(owner, minlength=number).tolist()
    return [Part(index) for index in torch.split(by_owner, sizes)]
