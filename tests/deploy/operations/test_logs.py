from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.cli.guard import say_error
from atoll.cli.voice import Format, Machines, People, voice_of
from atoll.deploy.operations import logs
from atoll.types import ClientId, Event


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged, and logging as it was afterwards."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level, mine = root.handlers[:], root.level, logging.getLogger("atoll").level
    logs.begin(stream)
    try:
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("atoll").setLevel(mine)
        logging.captureWarnings(False)


def read(stream: io.StringIO) -> list[dict[str, object]]:
    def none(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=none) for line in stream.getvalue().splitlines()]


def test_a_round_is_told_with_its_place(lines: io.StringIO) -> None:
    with Machines().follow("hearts", 8) as told:
        told.say("training")
        told.going_on_from(2)
        told.emit(Event("update", 2, "train", ClientId("north"), {"loss": 0.5}))
        told.emit(Event("failure", 2, "train", ClientId("south"), {}, "lost: its site has been offline for 300 s"))
        told.emit(Event("reduced", 2, "train", None, {"loss": float("nan"), "heard": 1.0, "lost": 1.0}))
        told.emit(Event("round", 2, metrics={"clock_s": 3.0}))
    phase, resumed, failure, reduced, round_ = read(lines)
    assert (phase["event"], phase["message"], phase["job"]) == ("phase", "training", "hearts")
    assert (resumed["round"], resumed["rounds"]) == (2, 8)
    assert {name: failure[name] for name in ("level", "event", "job", "round", "work", "client", "kind")} == {
        "level": "warning",
        "event": "failure",
        "job": "hearts",
        "round": 3,
        "work": "train",
        "client": "south",
        "kind": "lost",
    }
    assert (reduced["heard"], reduced["lost"], reduced["metrics"]) == (1, 1, {"loss": None, "heard": 1.0, "lost": 1.0})
    assert (round_["event"], round_["round"], round_["rounds"], round_["message"]) == ("round", 3, 8, "round 3/8")
    assert "client" not in round_
    assert all(str(each["time"]).endswith("Z") and len(str(each["time"])) == 24 for each in read(lines))


@given(text=st.text(max_size=50), site=st.text(max_size=20))
def test_a_line_is_a_line_whatever_is_said(text: str, site: str) -> None:
    record = logging.LogRecord("atoll", logging.INFO, "", 0, "%s", (text,), None)
    record.__dict__.update(event="said", fields={"site": site})
    line = logs.Lines().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert (json.loads(line)["message"], json.loads(line)["site"]) == (text, site)


def test_errors_warnings_and_other_packages_are_lines_too(lines: io.StringIO) -> None:
    say_error("the disk is full")
    say_error("stopped; join again to go on", label="")
    warnings.warn("a wheel is round", stacklevel=1)
    logging.getLogger("elsewhere").warning("lost %s", "it")
    logging.getLogger("elsewhere").info("chatter")
    error, stopped, warned, other = read(lines)
    assert (error["level"], error["event"], error["message"]) == ("error", "error", "the disk is full")
    assert (stopped["level"], stopped["event"]) == ("info", "stopped")
    assert "a wheel is round" in str(warned["message"])
    assert (other["event"], other["message"]) == ("elsewhere", "lost it")


def test_people_read_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(voice_of(Format.text), People)
    People().say("listening on 127.0.0.1:7433", "listening", address="127.0.0.1:7433")
    People().say("round 1, client-0, train: answered", "answered", job="hearts", round=1, client="client-0")
    People().say("the line was lost", "disconnected", "warning")
    with People().follow("hearts", 2) as told:
        told.emit(Event("round", 0))
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == ["listening on 127.0.0.1:7433", "hearts: round 1, client-0, train: answered"]
    assert out.splitlines()[2].startswith("hearts: round 1/2")
    assert err == "the line was lost\n"
