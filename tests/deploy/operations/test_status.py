"""A hub and its links in one process: what the coordinator writes of its job, and reads back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.deploy.brief import brief_of
from atoll.deploy.operations import watch as watching
from atoll.deploy.operations.sitelogs import MOST_BYTES, SiteLogs, last
from atoll.deploy.operations.status import FILE, ClientState, Live, Rules, SiteState, Status, Trouble, from_json, shown, to_json
from atoll.deploy.operations.watch import Watch
from atoll.deploy.operations.why import reasons
from atoll.deploy.rules.gate import Gate
from atoll.deploy.rules.gated import Gated
from atoll.deploy.rules.policy import read_policy
from atoll.errors import StoreError
from atoll.job.text import parse
from atoll.remote.hub import Hub
from atoll.remote.values import Invited, Place
from atoll.types import ClientId, Event
from tests.deploy.rules.test_gated import JOB as FIGURES
from tests.deploy.rules.test_gated import Line
from tests.remote.ends import JOB, NORTH, QUICK, SOUTH, Proxy, ask_for, event, hub_at, link_to, offered, reply, tree_of, until

PLACE = Place(0, NORTH, "train")


def read(folder: Path) -> Live:
    return from_json(Live, (folder / FILE).read_bytes(), FILE)


def told(folder: Path) -> str:
    """What `atoll why` would say."""
    return "\n".join(reasons(Status("job-1", JOB, "running", 3, 0, time.time(), read(folder))))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_at(tmp_path / "hub") as made:
        made.open(JOB, {NORTH: "north", SOUTH: "south"})
        yield made


def watch_over(hub: Hub, folder: Path, **more: object) -> Watch:
    return Watch(hub, JOB, folder, Rules(), **more)  # type: ignore[arg-type]


def comes(watch: Watch, folder: Path, seen: Callable[[Live], object]) -> Live:
    """The first look that sees it."""

    def looked() -> object:
        watch.look()
        return seen(read(folder))

    until(looked, "it never came")
    return read(folder)


def test_who_is_offline_who_refuses_and_who_is_at_work(hub: Hub, tmp_path: Path) -> None:
    watch = watch_over(hub, tmp_path)
    watch.saying(lambda _: None)("training")
    hub.offer(JOB, [ask_for(tree_of(10)), ask_for(tree_of(10), SOUTH)])
    watch.look()
    assert [(each.site, each.online, each.since, each.consent) for each in read(tmp_path).sites] == [
        ("north", False, None, ""),
        ("south", False, None, ""),
    ]
    assert "north: has not called since the coordinator began" in told(tmp_path)
    with link_to(hub.address, tmp_path / "north") as north:
        comes(watch, tmp_path, lambda live: live.sites[0].online)
        assert "north: connected, and has not answered the invitation" in told(tmp_path)
        north.consent(JOB, False, "a person is asked", b"waiting")
        comes(watch, tmp_path, lambda live: live.sites[0].consent == "waiting")
        assert "north: has not agreed yet: a person is asked. Round 1 waits for it (train)" in told(tmp_path)
        north.consent(JOB, False, "no such column", b"refused")
        comes(watch, tmp_path, lambda live: live.sites[0].consent == "refused")
        assert "north: refuses the job: no such column." in told(tmp_path)
        north.consent(JOB, True)
        assert offered(north).client == NORTH
        north.say(JOB, PLACE, 3, 10)
        live = comes(watch, tmp_path, lambda live: live.clients[0].doing == "training" and live.clients[0].done)
        assert live.clients[0][:5] == ("north", "north", "training", 3, 10)
        assert (live.clients[0].round, live.clients[0].work, live.work) == (0, "train", "train")
        assert "north, round 1 (train): training, step 3 of 10" in told(tmp_path)
    live = comes(watch, tmp_path, lambda live: not live.sites[0].online)
    assert live.sites[0].since is not None
    assert "north: offline since" in told(tmp_path)


@pytest.mark.parametrize("full", ["site", "coordinator"])
def test_whose_disk_has_no_room(tmp_path: Path, full: str) -> None:
    small = QUICK._replace(free_bytes=1 << 60)
    with hub_at(tmp_path / "hub", limits=small if full == "coordinator" else QUICK) as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree_of(10))])
        watch = watch_over(hub, tmp_path)
        with link_to(hub.address, tmp_path / "north", limits=small if full == "site" else QUICK) as link:
            if full == "site":
                assert event(link, Invited)
                next(link.events(0.2), None)
                comes(watch, tmp_path, lambda live: "no room" in live.clients[0].text)
                assert "waiting: the disk that holds" in told(tmp_path)
                assert "Mend that at north; it tries again by itself." in told(tmp_path)
            else:
                link.answer(JOB, reply(offered(link)))
                comes(watch, tmp_path, lambda live: "no room" in live.clients[0].text)
                assert "north, round 1 (train): its answer can't be taken: the disk that holds" in told(tmp_path)
                assert "Mend that at the coordinator; it tries again by itself." in told(tmp_path)


class Stalled(Proxy):
    """A line on which nothing comes down any more after so many bytes, and which is not cut."""

    def __init__(self, target: str, after: int) -> None:
        self.on, self._after = threading.Event(), after
        super().__init__(target)

    def _carry(self, way: str, source: object, sink: object) -> None:
        if way == "down":
            sink = Slow(sink, self._after, self.on)
        super()._carry(way, source, sink)  # type: ignore[arg-type]


class Slow:
    """The socket that a proxy writes to, which waits in the middle."""

    def __init__(self, sink: object, after: int, on: threading.Event) -> None:
        self._sink, self._left, self._on = sink, after, on

    def sendall(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._on.wait(30.0)
        self._sink.sendall(data)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._sink, name)


def test_half_of_a_model_has_come(hub: Hub, tmp_path: Path) -> None:
    watch, line = watch_over(hub, tmp_path), Stalled(hub.address, 10_000_000)
    hub.offer(JOB, [ask_for(tree_of(5_000_000))])
    try:
        with link_to(line.address, tmp_path / "north") as north:
            taken = threading.Thread(target=offered, args=(north,))
            taken.start()
            live = comes(watch, tmp_path, lambda live: live.clients[0].done > 7_000_000)
            north_now = live.clients[0]
            assert north_now.doing == "fetching"
            assert 20_000_000 <= north_now.total < 20_100_000
            assert "north, round 1 (train): fetching the model, " in told(tmp_path)
            share = 100 * north_now.done // north_now.total
            assert 35 <= share < 100
            assert f"{share} % (" in told(tmp_path)
            line.on.set()
            taken.join(30.0)
    finally:
        line.on.set()
        line.close()


def test_events_say_who_has_answered_and_which_round_it_is(hub: Hub, tmp_path: Path) -> None:
    watch = watch_over(hub, tmp_path)
    heard: list[str] = []
    say = watch.saying(heard.append)
    say("reading the data")
    watch.look()
    assert (read(tmp_path).doing, read(tmp_path).own, heard) == ("reading the data", True, ["reading the data"])
    say("training")
    watch.emit(Event("update", 0, "train", NORTH))
    watch.emit(Event("failure", 0, "train", SOUTH, {}, "error: no" + chr(27) + "such column"))
    watch.look()
    live = read(tmp_path)
    assert [(each.client, each.heard) for each in live.clients] == [("north", True), ("south", False)]
    assert live.lost == (Trouble(0, "south", "train", "error: no such column"),)
    watch.emit(Event("reduced", 0, "train"))
    watch.look()
    assert read(tmp_path).own
    assert not any(each.heard for each in read(tmp_path).clients)
    watch.emit(Event("round", 0))
    watch.look()
    assert (read(tmp_path).round, read(tmp_path).own, read(tmp_path).lost) == (1, False, ())
    say("waiting for south to keep what its clients remember")  # after the last round, which is not as before the first
    watch.look()
    assert (read(tmp_path).own, read(tmp_path).doing[:17]) == (True, "waiting for south")


def test_the_file_is_written_when_something_changes_and_when_it_is_old(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watch_over(hub, tmp_path)
    watch.look()
    first = read(tmp_path).at
    watch.look()
    assert read(tmp_path).at == first
    watch.emit(Event("round", 0))
    watch.look()
    second = read(tmp_path).at
    assert second > first
    monkeypatch.setattr(watching, "BEAT_S", 0.0)
    watch.look()
    assert read(tmp_path).at > second


def test_the_thread_looks_by_itself_and_ends_with_the_job(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_S", 0.02)
    with watch_over(hub, tmp_path), link_to(hub.address, tmp_path / "north"):
        until(lambda: read(tmp_path).sites[0].online, "it never looked")
    hub.close(JOB)
    assert read(tmp_path).clients  # what was seen last
    assert not any(each.name.startswith("atoll-watch") for each in threading.enumerate())


def test_what_goes_wrong_is_said_once_and_ends_nothing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    watch = watch_over(hub, tmp_path / "absent", complain=said.append)
    watch.look()
    watch.look()
    assert len(said) == 1
    assert "status.json is not kept" in said[0]
    monkeypatch.setattr(watching, "gathered", lambda *_: 1 / 0)
    watch.look()
    assert said[1:] == ["status.json is not kept: ZeroDivisionError: division by zero"]


def test_lines_of_sites_come_and_are_bounded(tmp_path: Path) -> None:
    logs, folder = SiteLogs(), tmp_path / "run"
    with hub_at(tmp_path / "hub", heard=logs.heard) as hub:
        hub.open(JOB, {NORTH: "north"})
        watch = watch_over(hub, folder.parent, logs=logs)
        with link_to(hub.address, tmp_path / "north") as link, link_to(hub.address, tmp_path / "east", "east") as other:
            until(lambda: link.online and other.online, "they never came")
            other.log(JOB, "of no member")
            link.log(JOB, "begins" + chr(27) + "[2J")

            def looked() -> object:
                watch.look()
                return last(tmp_path, 9)

            until(looked, "no line came")
    assert [(each.site, each.line) for each in last(tmp_path, 9)] == [("north", "begins [2J")]
    for i in range(300):
        logs.heard("loud", JOB, f"{i} " + "x" * 900)
        if i % 50 == 49:
            logs.keep(JOB, tmp_path)
    assert max(path.stat().st_size for path in (tmp_path / "site-logs").iterdir()) <= MOST_BYTES
    kept = [(each.site, each.line.split()[0]) for each in last(tmp_path, 5)]
    assert kept == [("north", "begins"), *(("loud", str(i)) for i in range(295, 300))]


@pytest.mark.parametrize("site", ["..", "a/b", "x" * 300, "ä ö"])
def test_no_site_names_a_file_elsewhere(tmp_path: Path, site: str) -> None:
    logs = SiteLogs()
    logs.heard(site, JOB, "line")
    logs.keep(JOB, tmp_path / "run")
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent == tmp_path / "run" / "site-logs"
    assert [each.site for each in last(tmp_path / "run", 1)] == [site]


WHOLE = Status(
    "job-1",
    "job",
    "running",
    3,
    1,
    9.5,
    Live(
        9.0,
        1.0,
        "training",
        False,
        1,
        2.0,
        None,
        "train",
        Rules(2, 1, 60.0, 3600.0, "stop", 5.0),
        (SiteState("north", False), SiteState("sud", True, 3.0, "refused", "é")),
        (ClientState("a", "north"), ClientState("b", "sud", "fetching", 1, 2, 3.0, 4.0, 0, "train", "x", True)),
        (Trouble(0, "a", "train", "lost"),),
    ),
    failures=(Trouble(0, "a", "train", "lost"),),
)


def test_as_json_and_back() -> None:
    assert from_json(Status, to_json(WHOLE), "x") == WHOLE
    newer = {**json.loads(to_json(WHOLE)), "of a newer Atoll": 1}
    assert from_json(Status, json.dumps(newer), "x") == WHOLE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", "3"),
        ("rounds", True),
        ("rounds", 3.5),
        ("now", "x"),
        ("live", []),
        ("live", {"at": 1}),
        ("failures", {}),
        ("run", None),
    ],
)
def test_what_is_no_status_is_refused_with_its_place(key: str, value: object) -> None:
    wrong = {**json.loads(to_json(WHOLE)), key: value}
    with pytest.raises(StoreError, match=f"a file makes no sense: {key}"):
        from_json(Status, json.dumps(wrong), "a file")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"run": NaN}', b"\xff"])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(StoreError, match="a file makes no sense"):
        from_json(Status, text, "a file")


def test_nobodys_words_move_a_cursor() -> None:
    assert shown("a\x1b[31m\r\n\u202eb\x00") == "a [31m   b "
    assert len(shown("x" * 5000)) == 1000


@pytest.mark.parametrize(("policy", "status"), [("", b"waiting"), ('[jobs]\nnames = ["others-*"]', b"refused")])
def test_a_site_says_whether_its_refusal_is_its_last_word(tmp_path: Path, policy: str, status: bytes) -> None:
    found: list[bytes] = []

    class Told(Line):
        def consent(self, job: str, accepted: bool, reason: str = "", about: bytes = b"") -> None:
            found.append(about)

    line = Told()
    gated = Gated(line, Gate(tmp_path, read_policy(f"site_policy = 1\n{policy}"), "university"))
    line.says.append(Invited("figures-1", (ClientId("client-0"),), brief_of(parse(FIGURES).values, ["client-0", "client-1"])))
    assert not list(gated.events(0.0))
    assert found == [status]
