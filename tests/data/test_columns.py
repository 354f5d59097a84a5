"""Columns that may not be read do not come into memory, and nothing is read before that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.data.columns import only
from atoll.data.table import read, table
from atoll.deploy.rules.judge import reading
from atoll.deploy.rules.policy import read_policy
from atoll.errors import DataError, UnknownName

pandas = pytest.importorskip("pandas")
FRAME = {"hospital": ["a", "b"] * 10, "age": range(20), "bmi": range(20), "code": range(20), "ill": [0, 1, 1, 0] * 5}
POLICY = read_policy('site_policy = 1\n[data]\ncolumns = ["age", "bmi", "ill", "hospital"]')


@pytest.fixture(params=["csv", "tsv", "parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    frame, file = pandas.DataFrame(FRAME), tmp_path / f"patients.{request.param}"
    if request.param == "parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, sep="\t" if request.param == "tsv" else ",", index=False)
    return file


def test_only_what_is_asked_for_is_read(path: Path) -> None:
    assert list(read(path).columns) == list(FRAME)
    assert sorted(read(path, ["bmi", "age", "bmi"]).columns) == ["age", "bmi"]
    with pytest.raises(UnknownName, match="no column is called 'bni'; did you mean 'bmi'"):
        read(path, ["bni"])


def test_a_policy_holds_whatever_the_job_says(path: Path) -> None:
    with reading(POLICY):
        assert len(table(str(path), "ill", "hospital", ["age", "bmi"]).clients) == 2
        for features in (None, ["age", "code"]):
            with pytest.raises(DataError, match="the column 'code' is not among age, bmi, ill, hospital"):
                table(str(path), "ill", "hospital", features)
        with pytest.raises(DataError, match="'code'"):
            table(str(path), "ill", "code", ["age"])
    assert len(table(str(path), "ill", "hospital").clients) == 2
    with reading(None):
        assert len(table(str(path), "ill", "hospital").clients) == 2


def test_the_refusal_comes_before_a_row_is_read(tmp_path: Path) -> None:
    torn = tmp_path / "patients.csv"
    torn.write_text('age,code,ill\n1,2,3\n4,5,6,7,8\n"')
    with pytest.raises(DataError, match="cannot be read as a table"):
        read(torn)
    with (
        only(lambda columns: [f"{name} may not be read" for name in columns if name == "code"]),
        pytest.raises(DataError, match=r"^code may not be read$"),
    ):
        read(torn)
