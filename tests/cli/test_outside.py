"""Runs whose numbers also go elsewhere: TensorBoard, MLflow and PostgreSQL, asked back from the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_run import JOB, atoll
from tests.store.conftest import postgres  # noqa: F401  # the fixture

SINKS = ["--set", 'sinks.tensorboard.folder="drawn"', "--set", 'sinks.mlflow.uri="sqlite:///mlflow.db"']


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


@pytest.mark.slow
def test_tensorboard_and_mlflow_have_the_losses(here: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    atoll("run", "job.toml", *SINKS, cwd=here)
    stop = ["--set", "local.lr=1e30", "--set", "local.momentum=0.9", "--set", "policy.name=synchronous"]
    atoll("run", "job.toml", *SINKS[2:], *stop, "--set", "policy.on_failure=stop", cwd=here, code=1)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{here}/mlflow.db")
    failed, good = client.search_runs([client.get_experiment_by_name("atoll").experiment_id])
    assert (failed.info.status, good.info.status) == ("FAILED", "FINISHED")
    assert good.data.params["task.model.name"] == "mlp"
    told = sorted((point.step, point.value) for point in client.get_metric_history(good.info.run_id, "evaluate/loss"))
    assert [step for step, _ in told] == [0, 1, 2]
    assert told[-1][1] < told[0][1]
    (folder,) = (path for path in (here / "runs").iterdir() if path.name == good.info.run_name)
    drawn = accumulator.EventAccumulator(str(here / "drawn")).Reload()
    assert [event.value for event in drawn.Scalars("evaluate/loss")] == pytest.approx([value for _, value in told])
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_runs_kept_in_postgresql(here: Path, postgres: str) -> None:  # noqa: F811
    said = atoll("run", "job.toml", "--store", postgres, cwd=here)
    assert "round 3/3" in said
    assert "finished" in atoll("runs", "--store", postgres, cwd=here)
    assert "is finished" in atoll("resume", "last", "--store", postgres, cwd=here)
    assert "report: " in atoll("report", "last", "--store", postgres, cwd=here)
    gone = atoll("runs", "--store", postgres.replace("/postgres?", "/nothing?"), cwd=here, code=1)
    assert "see that the server runs, and that the URL is right" in gone
