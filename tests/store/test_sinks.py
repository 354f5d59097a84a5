"""The database sink: complete, in batches, and cheap."""

import math
import time
from pathlib import Path

from atoll.store.runs import Store
from atoll.types import ClientId, Event

METRICS = {"loss": 0.5, "accuracy": 0.9, "seconds": 0.1, "examples": 100.0, "bytes_up": 8e5}


def test_every_number_is_kept_in_order(tmp_path: Path) -> None:
    with Store(tmp_path) as store, store.create("a", {}, seed=0, rounds=2) as run:
        for round in range(2):
            for client in "ba":
                run.sink.emit(Event("update", round, "train", ClientId(client), {"loss": round + 0.5, "inf": math.inf}))
            run.sink.emit(Event("late", round, "train", ClientId("c")))
            run.sink.emit(Event("reduced", round, "train", metrics={"loss": -0.0}))
            run.sink.emit(Event("round", round))
            record = store.record("last")
            assert len(record.series) == 5 * (round + 1), "a round that ended is not written"
        order = [("b", "loss"), ("b", "inf"), ("a", "loss"), ("a", "inf"), (None, "loss")]
        assert [(point.client, point.name) for point in record.series] == order * 2
        assert record.by_client("train", "inf") == {"b": [(0, math.inf), (1, math.inf)], "a": [(0, math.inf), (1, math.inf)]}
        assert [(i.kind, i.client, i.round) for i in record.incidents] == [("late", "c", 0), ("late", "c", 1)]
        elapsed = [point.elapsed_s for point in record.series]
        assert elapsed == sorted(elapsed)
        assert record.clients() == ["a", "b", "c"]


def test_a_page_that_shows_the_run_is_half_a_second_old_at_most(tmp_path: Path) -> None:
    with Store(tmp_path) as store, store.create("a", {}, seed=0, rounds=1) as run:
        run.sink.emit(Event("update", 0, "train", ClientId("a"), METRICS))
        assert store.record("last").series == ()
        time.sleep(0.55)
        run.sink.emit(Event("update", 0, "train", ClientId("b"), METRICS))
        assert len(store.record("last").series) == 2 * len(METRICS)


def test_a_hundred_updates_cost_little(tmp_path: Path) -> None:
    with Store(tmp_path) as store, store.create("a", {}, seed=0, rounds=9) as run:
        taken = []
        for round in range(9):
            began = time.process_time()
            for client in range(100):
                run.sink.emit(Event("update", round, "train", ClientId(f"client{client}"), METRICS))
            run.sink.emit(Event("round", round, metrics={"seconds": 1.0}))
            taken.append(time.process_time() - began)
    assert min(taken) < 0.03, f"{min(taken):.3f} s of processor time for a round of 100 updates with 5 numbers each"
