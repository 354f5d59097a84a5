"""The audit log: whole while it is left alone, and any edit of it is found."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.deploy.audit import AuditLog, Head, head_path, line_of, read_head
from atoll.deploy.rules.signatures import public_text
from atoll.deploy.verify import records, verify
from atoll.errors import ConfigError, StoreError

RECORDS = 8


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with an anchor and a mended crash in it."""
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    log = AuditLog(path, Ed25519PrivateKey.generate(), anchor_every=4)
    for i in range(RECORDS):
        log.append("left", job="hearts", round=i, bytes=1000 + i)
        if i == 4:
            with path.open("ab") as file:
                file.write(b'{"seq":7,"time":"2026')
            log = AuditLog(path, anchor_every=4)
    return path


def copied(written: Path, folder: Path, content: bytes, *, head: bool = True) -> Path:
    path = folder / "audit.jsonl"
    path.write_bytes(content)
    head_path(path).unlink(missing_ok=True)
    if head:
        head_path(path).write_bytes(head_path(written).read_bytes())
    return path


def test_a_log_that_was_left_alone_is_whole(written: Path) -> None:
    verdict = verify(written)
    assert verdict.findings == ()
    assert [record["seq"] for record in records(written)] == list(range(verdict.records))
    assert {record["event"] for record in records(written)} == {"opened", "left", "anchor", "mended"}
    assert verdict.head == read_head(head_path(written))
    assert "mends 22 bytes that a crash left" in verdict.notes[0]


EDITS = st.one_of(
    st.tuples(st.just("replace"), st.floats(0, 1), st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("remove"), st.floats(0, 1), st.integers(1, 400)),
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
    st.tuples(st.just("line removed"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("line doubled"), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.just("line moved"), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.just("cut short"), st.floats(0, 1), st.just(0)),
)


def edited(content: bytes, how: str, where: float, what: bytes | int | float) -> bytes:
    lines, at = content.splitlines(keepends=True), int(where * len(content))
    line = min(int(where * len(lines)), len(lines) - 1)
    if isinstance(what, bytes):
        return content[:at] + what + content[at + (len(what) if how == "replace" else 0) :]
    if how == "flip":
        at = min(at, len(content) - 1)
        return content[:at] + bytes([content[at] ^ (1 << int(what))]) + content[at + 1 :]
    if how == "remove":
        return content[:at] + content[at + int(what) :]
    if how == "cut short":
        return b"".join(lines[:line])
    taken = lines[line] if how == "line doubled" else lines.pop(line)
    if how != "line removed":
        lines.insert(int(what * (len(lines) + 1)), taken)
    return b"".join(lines)


@settings(max_examples=300, deadline=None)
@given(EDITS)
def test_any_edit_is_found(
    tmp_path_factory: pytest.TempPathFactory, written: Path, edit: tuple[str, float, bytes | int | float]
) -> None:
    content = written.read_bytes()
    changed = edited(content, *edit)
    path = copied(written, tmp_path_factory.getbasetemp(), changed)
    assert bool(verify(path).findings) == (changed != content)


@settings(max_examples=100, deadline=None)
@given(EDITS)
def test_any_edit_but_a_cut_between_records_is_found_without_a_head(
    tmp_path_factory: pytest.TempPathFactory, written: Path, edit: tuple[str, float, bytes | int | float]
) -> None:
    content = written.read_bytes()
    changed = edited(content, *edit)
    path = copied(written, tmp_path_factory.getbasetemp(), changed, head=False)
    cut = content.startswith(changed) and changed.endswith(b"\n") and verify(written).records > 0
    if not cut:
        assert bool(verify(path).findings) == (changed != content)


@pytest.fixture
def lines(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A plain log, and its lines: record n is line n + 1."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for i in range(5):
        log.append("left", n=i)
    return path, path.read_bytes().splitlines(keepends=True)


def told(path: Path, content: list[bytes]) -> list[tuple[int, str]]:
    path.write_bytes(b"".join(content))
    return [tuple(each) for each in verify(path).findings]


def test_a_changed_line_is_named(lines: tuple[Path, list[bytes]]) -> None:
    path, content = lines
    content[3] = content[3].replace(b'"n":2', b'"n":9')
    assert told(path, content) == [(4, "record 3 was changed, or is no record")]


def test_a_line_that_was_changed_with_its_hash_is_found_by_the_next(lines: tuple[Path, list[bytes]]) -> None:
    path, content = lines
    content[3] = line_of({**json.loads(content[3]), "n": 9})
    assert told(path, content) == [(5, "record 4 does not follow the record before it: one of them was replaced")]


def test_a_removed_line_is_named(lines: tuple[Path, list[bytes]]) -> None:
    path, content = lines
    del content[2]
    assert told(path, content) == [(3, "record 2 is missing before record 3: removed, or moved")]
    del content[2:4]
    assert told(path, content) == [(3, "records 2 to 4 are missing before record 5: removed, or moved")]


def test_an_inserted_line_is_named(lines: tuple[Path, list[bytes]]) -> None:
    path, content = lines
    assert told(path, [*content[:2], b"{}\n", *content[2:]]) == [(3, "no record of this log: it was inserted before record 2")]
    assert told(path, [*content[:4], content[1], *content[4:]]) == [
        (5, "record 1 stands after record 3: inserted again, or moved")
    ]


def test_reordered_lines_are_named(lines: tuple[Path, list[bytes]]) -> None:
    path, content = lines
    content[2], content[3] = content[3], content[2]
    assert told(path, content) == [
        (3, "record 2 is missing before record 3: removed, or moved"),
        (4, "record 2 stands after record 3: inserted again, or moved"),
    ]


def test_a_cut_at_the_end_is_found_by_the_head_and_by_nothing_else(lines: tuple[Path, list[bytes]]) -> None:
    path, content = lines
    assert told(path, content[:-2]) == [
        (0, "the log was cut short: records 4 to 5 are missing at its end, by the head at record 5")
    ]
    kept = read_head(head_path(path))
    assert kept is not None
    head_path(path).unlink()
    verdict = verify(path)
    assert verdict.findings == ()
    assert "records cut off at the end would not be found" in verdict.notes[0]
    assert len(verify(path, [kept]).findings) == 1


def test_a_log_written_anew_is_found_by_a_head_that_was_kept(tmp_path: Path) -> None:
    old, new = AuditLog(tmp_path / "a.jsonl"), AuditLog(tmp_path / "b.jsonl")
    for log in (old, new):
        log.append("left", n=0)
    kept = old.head
    assert verify(new.path).findings == ()
    assert "is of the log" in verify(new.path, [kept]).findings[0].text
    forged = kept._replace(log=new.head.log)
    assert (
        verify(new.path, [forged]).findings[0].text == "record 1 is not the one that the head tells of: the log was written anew"
    )


def test_a_key_finds_what_whoever_has_the_files_wrote_anew(tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, key, anchor_every=3)
    for i in range(6):
        log.append("left", n=i)
    assert verify(path, keys=[public_text(key)]).findings == ()
    assert {each.text for each in verify(path, keys=[public_text(other)]).findings} >= {
        "the signature of record 3 is of none of the keys: what lies before it was rewritten"
    }
    anew, before = [], "0" * 64
    for record in records(path):
        line = line_of({**record, "before": before, **({"n": 7} if record.get("n") == 0 else {})})
        before = json.loads(line)["hash"]
        anew.append(line)
    path.write_bytes(b"".join(anew))
    last = json.loads(anew[-1])
    head_path(path).write_text(json.dumps(Head(log.head.log, last["seq"], last["hash"], path.stat().st_size)._asdict()))
    assert verify(path).findings == ()  # the chain alone does not find it
    found = {each.text for each in verify(path, keys=[public_text(key)]).findings}
    assert "the signature of record 3 is of none of the keys: what lies before it was rewritten" in found
    assert (
        "the head at record 7 is signed by none of the keys" in found
        or "the head at record 8 is signed by none of the keys" in found
    )


@given(st.integers(1, 400), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_a_crash_leaves_is_mended_by_a_record(tmp_path_factory: pytest.TempPathFactory, cut: int, twice: bool) -> None:
    path = tmp_path_factory.mktemp("torn") / "audit.jsonl"
    log = AuditLog(path)
    log.append("left", n=0)
    head = log.head
    torn = line_of({"seq": 2, "time": "now", "event": "left", "before": head.hash, "n": 1, "more": "x" * 200})[:cut]
    with path.open("ab") as file:
        file.write(torn)
    if twice:  # and one more in the middle of the mending
        with path.open("ab") as file:
            file.write(b'\n{"seq":2,"time":"later","ev')
    before = path.read_bytes()
    AuditLog(path).append("left", n=2)
    assert path.read_bytes().startswith(before), "the log is only ever added to"
    assert verify(path).findings == ()
    events = [record["event"] for record in records(path)]
    complete = torn.endswith(b"\n") and not twice
    assert events.count("mended") == (0 if complete else 1)
    assert events[-1] == "left"


def test_a_log_that_was_cut_or_changed_is_not_written_on(lines: tuple[Path, list[bytes]]) -> None:
    path, content = lines
    path.write_bytes(b"".join(content[:-1]))
    with pytest.raises(StoreError, match="cut short: its head tells of 6 records"):
        AuditLog(path)
    path.write_bytes(b"".join([*content[:-1], content[-1].replace(b'"n":4', b'"n":5')]))
    with pytest.raises(StoreError, match=r"was changed at record 5; see `atoll audit verify"):
        AuditLog(path)
    head_path(path).unlink()
    path.write_bytes(b"".join([*content[:2], *content[3:]]))
    with pytest.raises(StoreError, match="record 3 does not follow record 1"):
        AuditLog(path)


def test_many_writers_make_one_chain(tmp_path: Path) -> None:
    path, each, writers = tmp_path / "audit.jsonl", 10, 6

    def write(writer: int) -> None:
        log = AuditLog(path)
        for n in range(each):
            log.append("left", writer=writer, n=n)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verify(path).findings == ()
    found = [(record["writer"], record["n"]) for record in records(path) if record["event"] == "left"]
    assert sorted(found) == [(writer, n) for writer in range(writers) for n in range(each)]
    assert all([n for w, n in found if w == writer] == list(range(each)) for writer in range(writers))


def test_a_record_is_what_json_carries_and_a_line_holds(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for fields, why in (
        ({"x": float("nan")}, "JSON"),
        ({"x": object()}, "JSON"),
        ({"x": "y" * 70_000}, "too long"),
        ({"seq": 1}, "of its own"),
    ):
        with pytest.raises(ConfigError, match=why):
            log.append("left", **fields)
    log.append("left", text='a line\nwith "quotes" and \u2028')
    assert verify(log.path).findings == ()
    assert verify(log.path).records == 2
