"""Events to an MLflow tracking server, database or folder: one MLflow run for one run of ours, resumed with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from atoll.errors import StoreError, missing_extra
from atoll.types import Event

_TAG = "atoll.run"
_BATCH = 1000  # MLflow takes no more at once
_VALUE = 500  # the longest parameter that every MLflow takes


class MLflow:
    """A sink that logs to MLflow once a round. It owns a client: close it.

    Numbers of the federation are metrics "work/name"; with `clients=True` those of each client are "work/name/client"
    too. MLflow can't take a number back, so a run that is resumed skips the rounds that it has logged already.
    """

    def __init__(
        self, uri: str, run: str, *, experiment: str = "atoll", config: Mapping[str, Any] | None = None, clients: bool = False
    ) -> None:
        """`uri` as MLflow has it: http://host:5000, sqlite:///file or a folder; `run` is our id.

        Raises MissingExtra without the package mlflow-skinny, StoreError where the server refuses.
        """
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise missing_extra("mlflow-skinny", "mlflow", "MLflow runs") from None
        self._refusal = MlflowException
        self._clients = clients
        self._waiting: list[Any] = []
        self._logged: dict[str, int] = {}  # metric -> the last round that an earlier process logged
        try:
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            home = found.experiment_id if found else self._client.create_experiment(experiment)
            mine = self._client.search_runs([home], f"tags.`{_TAG}` = '{run}'")
            self._resumed = bool(mine)
            entry = mine[0] if mine else self._client.create_run(home, tags={_TAG: run}, run_name=run)
            self._run = entry.info.run_id
            if not mine and config:
                self._log_config(config)
            elif mine:
                self._client.update_run(self._run, status="RUNNING")
        except MlflowException as error:
            raise self._refused(error) from error

    def emit(self, event: Event) -> None:
        """Gather the event's numbers; log them when the round ends. Raises StoreError where the server refuses."""
        from mlflow.entities import Metric

        if event.client is None or self._clients:
            path = "/".join(part for part in (event.work, "{}", event.client) if part)
            for name, value in event.metrics.items():
                key = _spell(path.format(name))
                if event.round > self._last(key):
                    self._waiting.append(Metric(key, float(value), int(time.time() * 1000), event.round))
        if event.kind == "round":
            self.flush()

    def flush(self) -> None:
        """Log what has been gathered."""
        try:
            while self._waiting:
                self._client.log_batch(self._run, metrics=self._waiting[:_BATCH])
                del self._waiting[:_BATCH]
        except self._refusal as error:
            raise self._refused(error) from error

    def close(self, status: str = "FINISHED") -> None:
        """Log what is left and end the MLflow run: FINISHED, FAILED or KILLED."""
        self.flush()
        self._client.set_terminated(self._run, status)

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        # As parameters, not as a file: MLflow would keep a file in the working directory, or need a file store.
        found = [Param(_spell(key), str(value)[:_VALUE]) for key, value in _flat(config)]
        for start in range(0, len(found), 100):
            self._client.log_batch(self._run, params=found[start : start + 100])

    def _last(self, key: str) -> int:
        if not self._resumed:
            return -1
        if key not in self._logged:
            history = self._client.get_metric_history(self._run, key)
            self._logged[key] = max((point.step for point in history), default=-1)
        return self._logged[key]

    def _refused(self, error: Exception) -> StoreError:
        return StoreError(f"MLflow refuses: {str(error).partition(chr(10))[0]}; mend the tracking URI or go without MLflow")


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings by dotted name.

    >>> list(_flat({"model": {"name": "mlp"}, "lr": 0.1}))
    [('model.name', 'mlp'), ('lr', 0.1)]
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _spell(key: str) -> str:
    """The name with only what MLflow allows in one.

    >>> _spell("train/loss/King Lear's")
    'train/loss/King Lear_s'
    """
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in key)[:250]
