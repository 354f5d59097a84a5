"""What a damaged or hostile site sends is refused, and costs neither memory nor disk nor anybody else's work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from blake3 import blake3

from atoll.errors import ConfigError, RemoteError
from atoll.remote import protocol_pb2 as pb
from atoll.remote.channel import METHODS, SERVICE, SITE_KEY
from atoll.remote.chunks import Chunk
from atoll.remote.contents import pieces
from atoll.remote.desk import place_to
from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.marks import mark_of
from atoll.remote.values import CHUNK_BYTES, Blob, Place, key_of
from atoll.types import Failure, Update
from tests.remote.ends import JOB, NORTH, QUICK, SOUTH, answer_of, ask_for, hub_at, link_to, offered, reply, tree_of, until


class Raw:
    """A site that says what it likes: gRPC without the link."""

    def __init__(self, hub: Hub, site: str) -> None:
        self._channel, self._meta = grpc.insecure_channel(hub.address), ((SITE_KEY, site),)

    def call(self, name: str, said: object) -> object:
        shape, asked, answered = METHODS[name]
        make = getattr(self._channel, shape)
        stub = make(f"/{SERVICE}/{name}", asked[0], answered[1])
        return stub(said, metadata=self._meta, timeout=30.0)

    def refused(self, name: str, said: object) -> tuple[grpc.StatusCode, str]:
        try:
            found = self.call(name, said)
            list(found) if isinstance(found, Iterator) else found  # type: ignore[call-overload]
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError(f"{name} was not refused")

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_at(tmp_path / "hub", limits=QUICK._replace(blob_bytes=1 << 24)) as hub:
        hub.open(JOB, {NORTH: "north", SOUTH: "south"})
        hub.offer(JOB, [ask_for(tree_of(10))])
        yield hub


@pytest.fixture
def raw(hub: Hub) -> Iterator[Raw]:
    raw = Raw(hub, "north")
    yield raw
    raw.close()


def parcel(hub: Hub, data: bytes, **more: object) -> pb.Parcel:
    (task,) = hub._floor.desks[JOB].tasks.values()
    blob = {"digest": blake3(data).hexdigest(), "size_bytes": len(data), **more}
    return pb.Parcel(place=place_to(JOB, Place(0, NORTH, "train")), key=key_of(task.tree, task.seed), blob=pb.Blob(**blob))


def chunk(data: bytes, parcel: pb.Parcel) -> Chunk:
    return Chunk(data, mark_of(blake3(data)), parcel)


def bytes_of(hub: Hub) -> int:
    return sum(path.stat().st_size for path in (hub.folder / "jobs").rglob("inbox/*"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"size_bytes": 1 << 62}, "are taken here"),
        ({"digest": "../../etc/passwd"}, "is no digest"),
        ({"digest": "A" * 64}, "is no digest"),
    ],
)
def test_a_lying_announcement_is_refused_before_anything_is_written(
    hub: Hub, raw: Raw, more: dict[str, object], said: str
) -> None:
    code, told = raw.refused("Have", parcel(hub, b"x", **more))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in told
    assert bytes_of(hub) == 0


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with hub_at(tmp_path / "full", limits=QUICK._replace(free_bytes=1 << 60)) as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree_of(10))])
        raw = Raw(hub, "north")
        code, told = raw.refused("Have", parcel(hub, b"x"))
        assert (code, "has no room" in told) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        raw.close()


def test_more_bytes_than_announced_are_refused(hub: Hub, raw: Raw) -> None:
    announced = parcel(hub, b"four")
    code, told = raw.refused("Push", iter([chunk(b"four and more", parcel=announced)]))
    assert (code, "more bytes" in told) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert bytes_of(hub) == 0


def test_a_chunk_above_the_limit_and_a_message_above_the_limit_are_refused(hub: Hub, raw: Raw) -> None:
    large = bytes(CHUNK_BYTES + 1)
    assert raw.refused("Push", iter([chunk(large, parcel=parcel(hub, large))]))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    huge = bytes(1 << 23)
    assert raw.refused("Push", iter([chunk(huge, parcel=parcel(hub, huge))]))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_of_another_digest_are_dropped_and_after_three_times_the_client_has_failed(hub: Hub, raw: Raw) -> None:
    announced = parcel(hub, b"four")
    for _ in range(2):
        assert raw.refused("Push", iter([chunk(b"five", parcel=announced)]))[0] is grpc.StatusCode.DATA_LOSS
        assert bytes_of(hub) == 0
    raw.call("Push", iter([chunk(b"five", parcel=announced)]))
    failure = answer_of(hub)
    assert isinstance(failure, Failure)
    assert (failure.kind, "not of the digest" in failure.reason) == ("invalid", True)


@pytest.mark.parametrize("data", [b"this is no frame", b"".join(pieces(reply(ask_for(tree_of(3), SOUTH))))])
def test_what_is_no_answer_to_this_work_is_a_failure(hub: Hub, raw: Raw, data: bytes) -> None:
    """The second is a frame in which the north speaks for the south."""
    raw.call("Push", iter([chunk(data, parcel=parcel(hub, data))]))
    failure = answer_of(hub)
    assert isinstance(failure, Failure)
    assert (failure.client, failure.kind) == (NORTH, "invalid")


def test_a_site_sees_and_answers_what_is_its_own_alone(hub: Hub, raw: Raw) -> None:
    """A stranger, the other member, and a job that is not there get the same answer: nothing is told of others."""
    announced, stranger, south = parcel(hub, b"four"), Raw(hub, "stranger"), Raw(hub, "south")
    (task,) = hub._floor.desks[JOB].tasks.values()
    tree = pb.Blob(digest=task.tree.digest, size_bytes=task.tree.size_bytes)
    for other in (stranger, south):
        assert other.refused("Have", announced)[0] is grpc.StatusCode.NOT_FOUND
        assert other.refused("Push", iter([chunk(b"four", parcel=announced)]))[0] is grpc.StatusCode.NOT_FOUND
        assert other.refused("Fetch", pb.Want(job=JOB, blob=tree))[0] is grpc.StatusCode.NOT_FOUND
    absent = pb.Parcel(place=place_to("other", Place(0, NORTH, "train")))
    assert raw.refused("Have", absent)[1] == stranger.refused("Have", announced)[1].replace("stranger", "north")
    assert len(list(raw.call("Fetch", pb.Want(job=JOB, blob=tree)))) == 1  # type: ignore[call-overload]
    stranger.close()
    south.close()


def test_an_answer_counts_once_and_the_first_one_counts(hub: Hub, raw: Raw) -> None:
    data, other = (b"".join(pieces(reply(ask_for(tree_of(10)), weight=weight))) for weight in (1.0, 2.0))
    for _ in range(2):
        receipt = raw.call("Push", iter([chunk(data, parcel=parcel(hub, data))]))
        assert receipt.complete  # type: ignore[attr-defined]
    assert not raw.call("Have", parcel(hub, other)).wanted  # type: ignore[attr-defined]
    assert not raw.call("Push", iter([chunk(other, parcel=parcel(hub, other))])).wanted  # type: ignore[attr-defined]
    replay = parcel(hub, data)
    answer = answer_of(hub)
    assert isinstance(answer, Update)
    assert answer.weight == 1.0
    assert not list(hub.answers(JOB, 0.0))
    hub.acknowledge(JOB, answer)
    assert not raw.call("Have", replay).wanted  # type: ignore[attr-defined]  # a replay
    assert bytes_of(hub) == 0


def test_an_answer_to_another_question_is_not_wanted(hub: Hub, raw: Raw) -> None:
    stale = parcel(hub, b"four")
    stale.key = key_of(Blob("0" * 64, 4), 7)
    assert not raw.call("Have", stale).wanted  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("oldest", "newest", "who"), [(2, 3, "at the coordinator"), (0, 0, "the site north is too old, upgrade atoll there")]
)
def test_versions_that_do_not_meet_are_refused_in_words(hub: Hub, raw: Raw, oldest: int, newest: int, who: str) -> None:
    hello = pb.SiteMessage(hello=pb.Hello(oldest=oldest, newest=newest, release="9.9"))
    code, told = raw.refused("Session", iter([hello]))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert who in told
    assert "9.9" in told


def test_a_site_says_why_it_has_no_session(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.remote.errands.OLDEST", 2)
    monkeypatch.setattr("atoll.remote.errands.NEWEST", 2)
    with link_to(hub.address, tmp_path / "new") as link:
        until(lambda: "too old" in link.trouble, link.trouble)
        assert not link.online


def test_a_session_that_begins_with_anything_else_ends(hub: Hub, raw: Raw) -> None:
    assert raw.refused("Session", iter([pb.SiteMessage(ping=pb.Ping())]))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_questions_are_answered_or_refused_in_words(tmp_path: Path) -> None:
    def ask(site: str, name: str, body: bytes) -> bytes:
        if name != "echo":
            raise RemoteError(f"nobody here knows {name!r}")
        return site.encode() + b":" + body

    with hub_at(tmp_path / "hub", ask=ask) as hub, link_to(hub.address, tmp_path / "site") as link:
        until(lambda: link.online, link.trouble)
        assert link.ask("echo", b"abc") == b"north:abc"
        with pytest.raises(RemoteError, match="nobody here knows 'else'"):
            link.ask("else")


def test_without_certificates_it_is_loopback_and_said_so(tmp_path: Path) -> None:
    for address, insecure in (("127.0.0.1:0", False), ("0.0.0.0:0", True), ("nowhere", True)):
        with pytest.raises(ConfigError):
            Hub(address, None, tmp_path / "hub", insecure=insecure)
        with pytest.raises(ConfigError):
            Link(address, None, "north", tmp_path / "site", insecure=insecure)


def test_a_port_that_is_taken_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="another coordinator"):
        Hub(hub.address, None, tmp_path / "second", insecure=True)


def test_one_site_that_reads_nothing_does_not_hold_up_another(hub: Hub, raw: Raw, tmp_path: Path) -> None:
    hub.offer(JOB, [ask_for(tree_of(4_000_000, seed=1))._replace(work="evaluate")])
    task = hub._floor.desks[JOB].tasks[Place(0, NORTH, "evaluate")]
    want = pb.Want(job=JOB, blob=pb.Blob(digest=task.tree.digest, size_bytes=task.tree.size_bytes))
    slow = [raw.call("Fetch", want) for _ in range(8)]  # more of them than the hub has threads; none is read
    with link_to(hub.address, tmp_path / "south", "south") as south:
        hub.offer(JOB, [ask_for(tree_of(500_000, seed=2), SOUTH)])
        assert offered(south).client == SOUTH
    for call in slow:
        call.cancel()  # type: ignore[attr-defined]
