"""The TensorBoard log holds what was emitted, read back by TensorBoard's own reader."""

import sys
from pathlib import Path

import pytest

from atoll.errors import MissingExtra
from atoll.types import ClientId, Event


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder))
    log.Reload()
    return {tag: [(point.step, point.value) for point in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_numbers_are_charts_and_a_resumed_run_draws_none_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from atoll.store.tensorboard import TensorBoard

    board = TensorBoard(tmp_path, clients=True)
    for round in range(3):
        board.emit(Event("update", round, "train", ClientId("north"), {"loss": 2.0 + round}))
        board.emit(Event("reduced", round, "train", metrics={"loss": 1.0 + round}))
        board.emit(Event("round", round, metrics={"seconds": 0.5}))
    board.close()
    board = TensorBoard(tmp_path)
    board.emit(Event("update", 2, "train", ClientId("north"), {"loss": 9.0}))
    board.emit(Event("reduced", 2, "train", metrics={"loss": 8.0}))
    board.emit(Event("failure", 2, "train", ClientId("south"), text="lost"))
    board.close()
    found = read(tmp_path)
    assert found["train/loss"] == [(0, 1.0), (1, 2.0), (2, 8.0)]
    assert found["train/loss/north"] == [(0, 2.0), (1, 3.0)]
    assert found["seconds"] == [(0, 0.5), (1, 0.5)]


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atoll.store.tensorboard import TensorBoard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"atoll\[tensorboard\]"):
        TensorBoard(tmp_path)
