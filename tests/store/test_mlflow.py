"""MLflow has what was emitted, asked back from a real tracking database."""

import sys
from pathlib import Path

import pytest

from atoll.errors import MissingExtra, StoreError
from atoll.store.mlflow import MLflow
from atoll.types import ClientId, Event


def emit(sink: MLflow, rounds: range) -> None:
    for round in rounds:
        sink.emit(Event("update", round, "train", ClientId("King Lear's"), {"loss": 2.0 + round}))
        sink.emit(Event("reduced", round, "train", metrics={"loss": 1.0 + round, "nan": float("nan")}))
        sink.emit(Event("round", round))


@pytest.mark.slow
def test_numbers_are_metrics_and_a_resumed_run_logs_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    config = {"model": {"name": "mlp", "widths": [32]}, **{f"x{number}": "y" * 900 for number in range(150)}}
    sink = MLflow(uri, "a-1", experiment=str(tmp_path.name), config=config, clients=True)
    emit(sink, range(3))
    sink = MLflow(uri, "a-1", experiment=str(tmp_path.name), clients=True)
    emit(sink, range(2, 4))
    sink.close()
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a-1")
    assert (run.data.params["model.name"], run.data.params["model.widths"]) == ("mlp", "[32]")
    assert len(run.data.params) == 152
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"], "MLflow left something in the working directory"

    def history(name: str) -> list[tuple[int, float]]:
        return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))

    assert history("train/loss") == [(round, 1.0 + round) for round in range(4)]
    assert history("train/loss/King Lear_s") == [(round, 2.0 + round) for round in range(4)]
    assert len(history("train/nan")) == 4


@pytest.mark.slow
def test_a_tracking_place_that_is_none_is_told(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(StoreError, match="MLflow refuses"):
        MLflow("nonsense://host", "a-1")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtra, match=r"atoll\[mlflow\]"):
        MLflow("sqlite:///x", "a-1")
