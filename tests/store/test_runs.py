"""Runs: their ids, their locks, how they end, and how they go on from a checkpoint, a damaged one too."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atoll.errors import ConfigError, RoundError, StoreError, UnknownName
from atoll.store.runs import Store
from atoll.testing.store import same_bits
from atoll.types import ClientId, Event, Update

LIKE = {"w": torch.zeros(64)}


def state(round: int) -> dict[str, torch.Tensor]:
    return {"w": torch.arange(64.0) + round}


def rounds(store: Store, total: int) -> str:
    """A run of so many rounds that was killed in the next one, before any answer."""
    run = store.create("a", {}, seed=0, rounds=total + 1)
    run.start()
    for round in range(total):
        run.journal.begin(round)
        run.journal.accept(Update(round, ClientId("north"), "train", state(round), 1.0, {}))
        run.sink.emit(Event("reduced", round, "train", metrics={"loss": float(round)}))
        run.sink.emit(Event("round", round))
        run.checkpoint(round + 1, state(round + 1))
    run.journal.begin(total)
    run.close()
    return run.id


def checkpoints(store: Store, id: str) -> list[Path]:
    return sorted((store.folder / id / "checkpoints").iterdir())


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "runs") as store:
        yield store


def test_ids_are_readable_safe_and_in_the_order_of_making(store: Store) -> None:
    names = ["Shakespeare by speaker", "../../etc", "\u00fc", "a" * 300, "-", "x", "x", "x"]
    made = [store.create(name, {}, seed=0, rounds=1) for name in names]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*-\d{8}-[0-9a-hj-km-np-tv-z]{4}", run.id) for run in made)
    assert made[0].id.startswith("shakespeare-by-speaker-")
    assert all(run.folder.parent == store.folder for run in made)
    same = [run.id for run in made[-3:]]
    assert same == sorted(set(same))
    assert [each.id for each in store.list()][:3] == same[::-1]
    for run in made:
        run.close()


def test_names_that_are_wrong_are_met_with_the_nearest_right_one(store: Store) -> None:
    with pytest.raises(UnknownName, match="there are no runs"):
        store.open("last")
    first, second = (store.create(name, {}, seed=0, rounds=1) for name in ("digits", "digits"))
    with pytest.raises(UnknownName, match=f"did you mean '({first.id}|{second.id})'"):
        store.record("digts" + first.id[6:])
    with pytest.raises(ConfigError, match="2 runs begin with 'digits'"):
        store.record("digits")
    for wrong in ("", "%", "_"):
        with pytest.raises(UnknownName):
            store.record(wrong)
    assert store.record("last").id == second.id


def test_a_run_is_one_process_s_at_a_time(store: Store) -> None:
    run = store.create("a", {}, seed=0, rounds=1)
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        store.open(run.id)
    program = f"from atoll.store.runs import Store; Store({str(store.folder)!r}).open({run.id!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_environment())
    assert f"StoreError: the run {run.id} is in use by process {os.getpid()}" in done.stderr
    run.close()
    program = f"from pathlib import Path; from atoll.store.lock import Lock; Lock(Path({str(run.folder / 'lock')!r}), 'it')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_environment())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_that_outlives_its_parent_does_not_keep_the_lock(store: Store) -> None:
    run = store.create("a", {}, seed=0, rounds=1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # as an engine's forked worker, with all of its parent's files
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        run.close()
        store.open(run.id).close()
    finally:
        os.close(writer)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (RoundError("too few clients"), "failed", "too few clients"),
        (ValueError("odd\x00"), "failed", "ValueError: odd\ufffd"),
        (KeyboardInterrupt(), "interrupted", ""),
        (None, "interrupted", ""),
    ],
)
def test_how_a_run_ended_is_recorded(store: Store, error: BaseException | None, status: str, told: str) -> None:
    def end() -> None:
        with store.create("a", {}, seed=0, rounds=3):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            end()
    else:
        end()
    record = store.record("last")
    assert (record.status, record.error) == (status, told)
    with store.open("last") as run:
        assert store.record("last").status == "running"
        run.checkpoint(3, state(3))
    record = store.record("last")
    assert (record.status, record.error) == ("finished", "")
    assert not run.journal.folder.exists()


def test_only_two_checkpoints_are_kept(store: Store) -> None:
    id = rounds(store, 5)
    assert [path.name for path in checkpoints(store, id)] == ["00000004.safetensors", "00000005.safetensors"]
    with store.open(id) as run:
        assert same_bits(run.latest(LIKE), (5, state(5)))


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_warning(store: Store, damage: str) -> None:
    id = rounds(store, 3)
    newest = checkpoints(store, id)[-1]
    data = bytearray(newest.read_bytes())
    if damage == "torn":
        newest.write_bytes(data[:-10])
    elif damage == "flipped":
        data[-5] ^= 4
        newest.write_bytes(data)
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        newest.unlink()
    with store.open(id) as run:
        assert same_bits(run.latest(LIKE), (2, state(2)))
        run.journal.begin(2)
        (answer,) = run.journal.accepted(2)  # still there, so that round 2 ends as it did
        assert same_bits(answer.tree, state(2))  # type: ignore[union-attr]
        run.sink.emit(Event("reduced", 2, "train", metrics={"loss": 2.0}))
        run.checkpoint(3, state(3))
        assert same_bits(run.latest(LIKE), (3, state(3)))
    record = store.record(id)
    assert record.global_series("train", "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    warnings = [incident.text for incident in record.incidents if incident.kind == "warning"]
    assert len(warnings) == (damage != "gone")
    assert all("went on from round 2: " in text and newest.name in text for text in warnings)


def test_where_no_checkpoint_is_whole_the_run_is_not_begun_anew_in_silence(store: Store) -> None:
    id = rounds(store, 3)
    for file in checkpoints(store, id):
        file.write_bytes(b"\x00" * 100)
    with pytest.raises(StoreError, match="start the run anew"), store.open(id) as run:
        run.latest(LIKE)


def test_a_checkpoint_of_another_federation_is_told_and_not_passed_over(store: Store) -> None:
    id = rounds(store, 2)
    with pytest.raises(StoreError, match="of another federation"), store.open(id) as run:
        run.latest({"w": torch.zeros(3)})


def test_what_was_recorded_before_a_checkpoint_stays_whatever_its_round(store: Store) -> None:
    with store.create("a", {}, seed=0, rounds=9) as run:
        run.sink.emit(Event("round", 1, "evaluate", metrics={"loss": 3.0}))  # of the model that round 1 begins with
        run.checkpoint(1, state(1))
        run.sink.emit(Event("round", 0, "evaluate", metrics={"after": 4.0}))  # of a round that does not come again
        run.sink.emit(Event("round", 1, metrics={"seconds": 5.0}))
        run.latest(LIKE)
        run.sink.emit(Event("round", 1, metrics={"seconds": 6.0}))
    record = store.record("last")
    assert record.global_series("evaluate", "loss") == [(1, 3.0)]
    assert record.global_series("evaluate", "after") == [(0, 4.0)]
    assert record.global_series("", "seconds") == [(1, 6.0)]
    assert record.elapsed_s == max(point.elapsed_s for point in record.series)


def test_the_folder_of_runs_may_be_moved(store: Store, tmp_path: Path) -> None:
    id = rounds(store, 2)
    store.close()
    store.folder.rename(tmp_path / "moved")
    with Store(tmp_path / "moved") as moved:
        assert moved.record(id).folder == str(tmp_path / "moved" / id)
        with moved.open(id) as run:
            assert run.latest(LIKE) is not None


def test_a_run_whose_folder_is_gone_is_told(store: Store) -> None:
    run = store.create("a", {}, seed=0, rounds=1)
    run.close()
    (run.folder / "lock").unlink()
    run.folder.rmdir()
    assert store.record(run.id).status == "created"
    with pytest.raises(StoreError, match="is not here"):
        store.open(run.id)


def test_any_configuration_is_kept_as_json(store: Store) -> None:
    config = {"path": Path("a/b"), "inf": math.inf, "nested": {"t": (1, {2}), "text": "a\x00\ud800"}, 3: None}
    store.create("a", config, seed=-1, rounds=1).close()
    kept = {"path": "a/b", "inf": "inf", "nested": {"t": [1, [2]], "text": "a\ufffd\ufffd"}, "3": None}
    assert store.record("last").config == kept
    assert store.record("last").versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_store_under_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give a folder that may be written"):
        Store(tmp_path / "file" / "runs")


def test_reading_runs_does_without_torch(tmp_path: Path) -> None:
    program = f"import sys; from atoll.store.runs import Store; Store({str(tmp_path)!r}).list(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_environment())
    assert (done.stdout, done.stderr) == ("False\n", "")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
