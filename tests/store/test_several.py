"""Several sinks see what one would."""

from pathlib import Path

from atoll.store.runs import Store
from atoll.store.several import Several
from atoll.types import Event


def test_several_sinks_see_the_same_in_the_same_order(tmp_path: Path) -> None:
    with Store(tmp_path) as store, store.create("a", {}, 0, 1) as one, store.create("b", {}, 0, 1) as two:
        both = Several(one.sink, two.sink)
        for kind in ("reduced", "round"):
            both.emit(Event(kind, 0, metrics={"loss": 1.0}))
        assert [p.value for p in store.record(one.id).series] == [p.value for p in store.record(two.id).series] == [1.0, 1.0]
