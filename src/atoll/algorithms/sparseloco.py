"""SparseLoCo (Sarfi et al. 2025, arXiv:2508.15706, Algorithm 1): DiLoCo whose outer momentum is a residual at each client.

client  H inner AdamW steps from w;  e = decay e - D_k;  s_k = Q(TopK(e));  e -= s_k
server  w -= lr mean(s_k)

TopK keeps 64 of each 4,096 entries, Q has 2 bits a value. Nothing in it is new here: `fedavg` over kept inner optimisers,
and `feedback` around `chunk_top_k` and `few_bits`. The way down is dense unless `broadcast` is attached too; the paper's
peers send each other what the server here adds up.
"""

from __future__ import annotations

from typing import Any

from atoll import server_opt as opt
from atoll.algorithms.diloco import goes_on
from atoll.algorithms.fedavg import fedavg
from atoll.transforms.compress.chunk_top_k import chunk_top_k
from atoll.transforms.compress.feedback import feedback
from atoll.transforms.compress.few_bits import few_bits
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, Local

TRAFFIC = {"train": {"up": 0.006}}  # 0.17 bits an entry with the defaults: its share of positions, values and scales


def sparseloco(
    local: Local[Any], outer_lr: float = 1.0, chunk: int = 4096, keep: int = 64, bits: int = 2, decay: float = 0.95
) -> Algorithm[Any]:
    """DiLoCo that sends 1.6 % of the entries, in two bits each, and keeps what it did not send for later rounds.

    `local`: `adamw(task, steps=H, keep=True)`, H = 15 to 250 in the paper. `keep` of every `chunk` entries are sent, in
    `bits` each; `decay`: of what a client holds back, a round.

    Raises:
        ConfigError: the local work begins anew in each round, or a value is out of its range.

    >>> from atoll.local.adamw import adamw
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sparseloco(adamw(regression(linear(3, 1)), steps=30, keep=True)).local["train"].payload
    'encoded'
    """
    inner = fedavg(goes_on(local, "sparseloco"), opt.sgd(outer_lr), weights="uniform")
    return pipe(inner, feedback([chunk_top_k(chunk, keep), few_bits(bits)], "always", decay))
