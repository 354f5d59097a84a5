"""Bad input at a coordinator that is at work, by the numbers of the list that the platform is judged by.

Each is refused with a typed answer, is on record, and leaves the round with the bits that it has without the hostile site.
Atoll reads frames and protobuf alone: bytes of safetensors, msgpack, .npy, zip or JSON are no frame, and what those numbers ask
of their formats is asked of ours beside them.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import save

from atoll.deploy.enrol import listening
from atoll.errors import IdentityError
from atoll.identity import messages, peers, revocation, tokens
from atoll.identity.authority import create
from atoll.identity.requests import make_request
from atoll.remote import protocol_pb2 as pb
from atoll.remote.desk import place_to
from atoll.remote.enrolment import ask
from atoll.remote.values import CHUNK_BYTES, Place
from atoll.types import ClientId, Failure, Tree
from atoll.wire import table as tables
from atoll.wire.octets import number, real, text
from tests.deploy.live import HONEST, HOSTILE, LIMITS, Asked, Live, content
from tests.remote.ends import until
from tests.remote.raw import Raw, chunk

W = b"\0" + text("w") + b"\x20"  # shares nothing with a name before it; float32, one axis: its length follows
CUBE = b"\0" + text("w") + b"\x60"  # three axes


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    made = Live(tmp_path_factory.mktemp("live"))
    yield made
    made.close()


class Harm:
    """A pickle that would run a program."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, ("raise SystemExit('the pickle was read')",)


def framed(
    asked: Asked, table: bytes, payload: bytes = b"", fields: bytes = b"", length: int | None = None, widest: int = 4
) -> bytes:
    """The answer to what is asked, with this tensor table, as a blob holds it. `widest`: bytes of its widest numbers."""
    head = (fields or number(asked.round) + text(HOSTILE) + text("train") + real(8.0) + number(0)) + table
    told = 1 | (widest.bit_length() - 1) << 3
    front = struct.pack("<4sBBI", b"ATLL", 1, told, len(head) if length is None else length) + head
    return front + bytes(-len(front) % widest) + payload


def packed(plain: bytes) -> bytes:
    return b"\1" + zstandard.ZstdCompressor(level=9).compress(plain)


def of_torch(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def safetensors(header: bytes, length: int | None = None, payload: bytes = b"") -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + payload


def npy(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def slipping() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("../../etc/cron.d/x", "* * * * * root true")
    return file.getvalue()


def changed(asked: Asked, change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    """A good update but for one change to its tree."""
    tree = dict(asked.update().tree)
    change(tree)
    return content(asked.update(tree=tree))


def first(tree: Tree) -> str:
    return next(iter(tree))


def many(count: int) -> bytes:
    return b"\0" + number(count) + b"".join(b"\0" + text(f"w{n}") + b"\0" for n in range(count))


F32 = '{"dtype":"F32","shape":[2],"data_offsets":'
ANSWERS: dict[str, tuple[Callable[[Asked], bytes], str]] = {
    "1 pickle": (lambda a: pickle.dumps(Harm()), "no frame"),
    "1 torch.save": (lambda a: of_torch(Harm()), "no frame"),
    "1 a pickle for a tensor's name": (
        lambda a: changed(a, lambda t: t.update({"\x80\x04": torch.zeros(1)})),
        "only one side has",
    ),
    "2 safetensors": (lambda a: save(dict(a.update().tree)), "no frame"),
    "2 safetensors cut short": (lambda a: save(dict(a.update().tree))[:-3], "no frame"),
    "2 a frame cut short": (lambda a: content(a.update())[:-3], "are announced"),
    "2 a frame with trailing bytes": (lambda a: content(a.update()) + b"more", "are announced"),
    "2 a frame's head cut short": (lambda a: content(a.update())[:80], "cut short"),
    "3 safetensors with a header of 2^62": (lambda a: safetensors(b"{}", 1 << 62), "no frame"),
    "3 a head of 4 GiB": (lambda a: framed(a, b"\0\0", length=2**32 - 1), "longer than the"),
    "4 safetensors that overlap": (
        lambda a: safetensors(f'{{"a":{F32}[0,8]}},"b":{F32}[4,12]}}}}'.encode(), payload=bytes(12)),
        "no frame",
    ),
    "4 a table of more than there is": (
        lambda a: framed(a, b"\0\2" + W + number(2) + b"\0" + text("v") + b"\x20" + number(2), bytes(12)),
        "announced",
    ),
    "5 a shape that overflows": (lambda a: framed(a, b"\0\1" + CUBE + 3 * number(2**21)), "nothing holds"),
    "5 a negative length": (lambda a: framed(a, b"\0\1" + W + b"\xff" * 9 + b"\1"), "above|63 bits"),
    "6 a tensor twice": (lambda a: framed(a, b"\0\2" + 2 * (W + number(1)), bytes(8)), "'w' twice"),
    "7 NaN": (lambda a: changed(a, lambda t: t.update({first(t): t[first(t)] * float("nan")})), "NaN or infinite"),
    "7 one infinity": (lambda a: changed(a, lambda t: t[first(t)].view(-1)[:1].fill_(float("-inf"))), "NaN or infinite"),
    "7 a metric of NaN": (lambda a: content(a.update(metrics={"loss": float("nan")})), "NaN or infinite"),
    "8 shape [0, 2^40]": (lambda a: changed(a, lambda t: t.update({first(t): torch.empty(0, 2**40)})), "trees disagree"),
    "8 a terabyte of nothing": (lambda a: framed(a, b"\0\1" + CUBE + number(0) + 2 * number(2**40)), "nothing holds"),
    "9 100 001 tensors": (lambda a: framed(a, many(100_001)), "above 100000"),
    "9 100 000 tensors": (lambda a: framed(a, many(100_000), bytes(400_000)), "only one side has"),
    "10 a tensor called ../../etc/x": (
        lambda a: changed(a, lambda t: t.update({"../../etc/x": t.pop(first(t))})),
        "only one side has",
    ),
    "11 a truth value of 7": (
        lambda a: framed(a, b"\0\1\0" + text("w") + b"\x2b" + number(1), b"\7", widest=1),
        "neither 0 nor 1",
    ),
    "12 float64": (lambda a: changed(a, lambda t: t.update({n: x.double() for n, x in t.items()})), "float64"),
    "12 whole numbers": (lambda a: changed(a, lambda t: t.update({n: x.long() for n, x in t.items()})), "int64"),
    "12 another shape": (lambda a: changed(a, lambda t: t.update({first(t): t[first(t)][:1]})), "trees disagree on"),
    "12 a tensor less": (lambda a: changed(a, lambda t: t.pop(first(t))), "only one side has"),
    "12 a tensor more": (lambda a: changed(a, lambda t: t.update(extra=torch.zeros(1))), "only one side has extra"),
    "13 msgpack of 2^32 - 1 entries": (lambda a: b"\xdd\xff\xff\xff\xff", "no frame"),
    "13 msgpack 600 deep": (lambda a: b"\x91" * 600 + b"\xc0", "no frame"),
    "13 metrics that are not there": (
        lambda a: framed(a, b"", fields=number(0) + text(HOSTILE) + text("t") + real(1) + number(4096)),
        "before a field does",
    ),
    "14 msgpack with a key twice": (lambda a: b"\x82\xa1w\x01\xa1w\x02", "no frame"),
    "14 a metric twice": (
        lambda a: framed(
            a, b"\0\0", fields=number(a.round) + text(HOSTILE) + text("train") + real(1) + number(2) + 2 * (text("a") + real(0))
        ),
        "a metric twice",
    ),
    "15 .npy of 256 GiB": (lambda a: npy((1 << 36,)), "no frame"),
    "15 a frame of 256 GiB": (lambda a: framed(a, b"\0\1" + W + number(1 << 36)), "announced as 274877906944"),
    "16 zlib": (lambda a: zlib.compress(bytes(1 << 26), 9), "no frame"),
    "16 a table that unpacks to 64 MiB": (lambda a: framed(a, packed(bytes(1 << 26))), "unpacks to 67108864"),
    "16 a table at the limit": (lambda a: framed(a, packed(bytes(1 << 24))), "more than its fields"),
    "17 zip": (lambda a: slipping(), "no frame"),
    "18 JSON": (lambda a: b'{"w": NaN, "w": 1}', "no frame"),
    "18 JSON 100 000 deep": (lambda a: b"[" * 100_000, "no frame"),
    "24 weight 0": (lambda a: content(a.update(weight=0.0)), "weight is 0"),
    "24 weight -1": (lambda a: content(a.update(weight=-1.0)), "weight is -1"),
    "24 weight 2^63": (lambda a: content(a.update(weight=2.0**63)), "weight is 9.2"),
    "24 weight NaN": (lambda a: content(a.update(weight=float("nan"))), "weight is nan"),
    "24 weight infinite": (lambda a: content(a.update(weight=float("inf"))), "weight is inf"),
    "27 the answer of another's client": (lambda a: content(a.update(client=HONEST)), "no answer to this work"),
    "27 a failure with another's client": (
        lambda a: content(Failure(a.round, HONEST, "train", "error", "")),
        "no answer to this work",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_is_rejected(live: Live, case: str) -> None:
    make, why = ANSWERS[case]
    asked = live.asked()
    live.answer(asked, make(asked))
    live.survives(asked, why)


def test_what_it_is_tried_against_is_an_answer(live: Live) -> None:
    """The answers above are refused for what is wrong in them, and not for how they are made here."""
    asked = live.asked()
    live.answer(asked, content(Failure(asked.round, HOSTILE, "train", "error", "an honest failure")))
    live.survives(asked, "an honest failure")
    update = asked.update(metrics={})
    payload = b"".join(x.numpy().tobytes() for x in update.tree.values())
    assert framed(asked, tables.write(tables.table_of(update.tree)), payload) == content(update).lstrip(b"\0")


def on_record(live: Live, part: str, peer: str = "south") -> None:
    until(lambda: live.refusals_of(peer, part), f"no record of {peer!r} says {part!r}")


@pytest.mark.parametrize("name", ["Session", "Fetch", "Have", "Push", "Ask"])
@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0b" * 600],
    ids=["noise", "a length of 2^62", "600 deep"],
)
def test_13_bytes_that_are_no_message(live: Live, name: str, data: bytes) -> None:
    asked = live.asked()
    said = iter([data]) if name in ("Session", "Push") else data
    code, why = live.raw.refused(name, said, lambda each: each)
    assert code is grpc.StatusCode.INVALID_ARGUMENT, why
    on_record(live, "no message")
    live.survives(asked)


def names_to_files(victim: Path) -> dict[str, dict[str, object]]:
    return {
        "relative": {"digest": "../" * 12 + str(victim)[1:]},
        "absolute": {"digest": str(victim)},
        "in upper case": {"digest": "A" * 64},
    }


@pytest.mark.parametrize("which", ["relative", "absolute", "in upper case"])
def test_10_a_digest_that_is_a_path(live: Live, tmp_path: Path, which: str) -> None:
    """What is called so is neither read nor, once it is settled, removed."""
    asked, victim = live.asked(), tmp_path / "victim"
    victim.write_text("of the coordinator")
    parcel = asked.of(b"x", **names_to_files(victim)[which])
    for name, said in (("Have", parcel), ("Push", iter([chunk(b"x", parcel)]))):
        code, why = live.raw.refused(name, said)
        assert (code, "is no digest" in why) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    on_record(live, "is no digest")
    live.survives(asked)
    assert victim.read_text() == "of the coordinator"


def test_10_a_job_and_a_client_that_are_paths(live: Live) -> None:
    asked = live.asked()
    for job, client in (("../../x", HOSTILE), (live.run, ClientId("../../x"))):
        parcel = pb.Parcel(
            place=place_to(job, Place(asked.round, client, "train")), key=asked.parcel.key, blob=asked.of(b"x").blob
        )
        assert live.raw.refused("Have", parcel)[0] is grpc.StatusCode.NOT_FOUND
    on_record(live, "../../x")
    live.survives(asked)


def bytes_of(live: Live) -> int:
    return sum(path.stat().st_size for path in (live.folder / "hub" / "jobs").rglob("inbox/*"))


def test_19_a_size_that_is_too_large_or_a_lie(live: Live) -> None:
    asked, four = live.asked(), b"four"
    for size_bytes in (1 << 62, LIMITS.blob_bytes + 1):
        code, why = live.raw.refused("Have", asked.of(four, size_bytes=size_bytes))
        assert (code, "are taken here" in why) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, why = live.raw.refused("Push", iter([chunk(four + b" and more", asked.of(four))]))
    assert (code, "more bytes" in why) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    large = bytes(CHUNK_BYTES + 1)
    assert live.raw.refused("Push", iter([chunk(large, asked.of(large))]))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    huge = bytes(1 << 23)
    assert live.raw.refused("Push", iter([chunk(huge, asked.of(huge))]))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    (task,) = [task for task in live.hub._floor.desks[live.run].tasks.values() if task.site == "south"]
    beyond = pb.Want(job=live.run, blob=pb.Blob(digest=task.tree.digest, size_bytes=task.tree.size_bytes), offset=1 << 63)
    assert live.raw.refused("Fetch", beyond)[0] is grpc.StatusCode.INVALID_ARGUMENT
    until(lambda: bytes_of(live) == 0, "something of it is kept")
    for part in ("are taken here", "more bytes", "at most", "beyond the end"):
        on_record(live, part)
    live.survives(asked)


def test_20_who_stalls_is_hung_up_on(live: Live) -> None:
    """Before it says who it is, in the middle of an answer, and before TLS; the others are served meanwhile."""
    asked, over = live.asked(), threading.Event()
    data = bytes(2 * CHUNK_BYTES)

    def stalling(*said: object) -> Iterator[object]:
        yield from said
        over.wait(30.0)

    host, _, port = live.hub.address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    began_s = time.monotonic()
    parcel = asked.of(data)
    for name, said, why in (
        ("Session", stalling(), "said nothing after it had called"),
        ("Push", stalling(chunk(data[:CHUNK_BYTES], parcel)), "stopped in the middle of an answer"),
    ):
        code, told = live.raw.refused(name, said)
        assert (code, why in told) == (grpc.StatusCode.DEADLINE_EXCEEDED, True), told
        on_record(live, why)
    assert time.monotonic() - began_s < 2 * LIMITS.stall_s + 10.0
    over.set()
    live.survives(asked)
    for each in silent:
        each.close()


def test_21_to_23_an_answer_counts_once_for_its_own_question(live: Live) -> None:
    asked = live.asked()
    good, place = content(asked.update()), asked.parcel.place
    for round in (asked.round - 1, asked.round + 1, 2**63):
        other = pb.Place(job=place.job, round=max(round, 0), client=place.client, work=place.work if round >= 0 else "other")
        parcel = pb.Parcel(place=other, key=asked.parcel.key, blob=asked.of(good).blob)
        assert not live.raw.call("Have", parcel).wanted
        assert not live.raw.call("Push", iter([chunk(good, parcel)])).wanted
    for key in ("", "0" * 64):  # of another model, or another seed
        parcel = pb.Parcel(place=place, key=key, blob=asked.of(good).blob)
        assert not live.raw.call("Push", iter([chunk(good, parcel)])).wanted
    failed = content(Failure(asked.round, HOSTILE, "train", "error", "the first answer"))
    assert live.answer(asked, failed).complete
    assert not live.answer(asked, good).wanted
    live.survives(asked, "the first answer")
    assert not live.answer(asked, failed).wanted  # a replay
    assert not live.answer(asked, good).wanted
    until(lambda: bytes_of(live) == 0, "something of it is kept")
    on_record(live, "not asked for")


def test_26_who_is_not_certified_is_not_heard(live: Live, tmp_path: Path) -> None:
    asked, stranger = live.asked(), create(tmp_path / "other", "trial.example", ["localhost"])
    soon = timedelta(seconds=1)
    expired = live.enrolled("late", life=soon, now=peers.clock() - timedelta(days=2))
    for made in (live.enrolled("south", stranger), expired):
        raw = Raw(live.hub.address, "south", made)
        assert raw.refused("Have", asked.of(b"x"))[0] is grpc.StatusCode.UNAVAILABLE
        raw.close()
    nobody = grpc.secure_channel(live.hub.address, grpc.ssl_channel_credentials(live.authority.ca_pem))
    with pytest.raises(grpc.RpcError):
        nobody.unary_unary("/atoll.remote.v1.Coordinator/Have")(b"", timeout=5.0)
    nobody.close()
    gone = Raw(live.hub.address, "gone", live.enrolled("gone"))
    revocation.revoke(live.authority, "gone")
    for name, said in (("Have", asked.of(b"x")), ("Ask", pb.Question(name="status")), ("Session", iter([pb.SiteMessage()]))):
        code, why = gone.refused(name, said)
        assert (code, "was revoked" in why) == (grpc.StatusCode.PERMISSION_DENIED, True)
    gone.close()
    on_record(live, "was revoked", peer="")
    live.survives(asked)


def test_27_a_certificate_speaks_for_its_own_site_alone(live: Live) -> None:
    """Whatever the caller calls itself beside it."""
    asked = live.asked()
    south = live.raw
    south._meta, meta = (("atoll-site", "north"),), south._meta
    place = pb.Place(job=live.run, round=asked.round, client=HONEST, work="train")
    parcel = pb.Parcel(place=place, key=asked.parcel.key, blob=asked.of(b"x").blob)
    for name, said in (("Have", parcel), ("Push", iter([chunk(b"x", parcel)]))):
        assert south.refused(name, said)[0] is grpc.StatusCode.NOT_FOUND
    live._session.say(pb.SiteMessage(settled=pb.Settled(parcel=parcel)))  # of another's answer: it changes nothing
    live._session.say(pb.SiteMessage(progress=pb.Progress(place=place, doing="training", done=1 << 63, total=1)))
    south._meta = meta
    on_record(live, f"Have {live.run} {HONEST}")
    live.survives(asked)


def test_28_a_token_buys_one_certificate_in_its_time(live: Live) -> None:
    asked, made = live.asked(), live.authority
    used, expired = tokens.invite(made, "west"), tokens.invite(made, "east", now=peers.clock() - timedelta(days=2))
    port = listening(made.folder, "localhost:0")
    try:
        ask(port.address, made.ca_pem, messages.with_token(used, make_request("west")[1]))
        wrong = tokens.invite(made, "west")[:-4] + "AAAA"
        for token, name, why in ((used, "west", "was used"), (expired, "east", "expired"), (wrong, "west", "no such token")):
            with pytest.raises(IdentityError, match=why):
                ask(port.address, made.ca_pem, messages.with_token(token, make_request(name)[1]))
    finally:
        port.close()
    live.survives(asked)


def test_29_another_sites_job_is_not_there(live: Live) -> None:
    """In the same words as one that nobody has, and on record."""
    asked = live.asked()
    live.hub.open("secret", {ClientId("client-9"): "north"})
    told = []
    for job in ("secret", "nothing"):
        parcel = pb.Parcel(place=place_to(job, Place(0, ClientId("client-9"), "train")), blob=asked.of(b"x").blob)
        want = pb.Want(job=job, blob=asked.of(b"x").blob)
        told.append(
            [live.raw.refused(n, s) for n, s in (("Have", parcel), ("Push", iter([chunk(b"x", parcel)])), ("Fetch", want))]
        )
    live.hub.close("secret")
    assert told[0] == told[1]
    assert {code for code, _ in told[0]} == {grpc.StatusCode.NOT_FOUND}
    on_record(live, "Have secret")
    live.survives(asked)
