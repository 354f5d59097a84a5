"""The report of one run: complete, closed to the network, and proof against what stands in a record."""

from __future__ import annotations

import dataclasses
import html
import math
import re
import time
import tomllib
from html.parser import HTMLParser

import pytest

from atoll.report.page import pair, render
from atoll.store.record import Incident, Note, Point, Record
from tests.report.synthetic import CONFIG, record

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Every element with its attributes; an unbalanced page is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def bare(**changes: object) -> Record:
    made = Record("a-1", "a", "finished", 0, 2, {"atoll": 1, "rounds": 2}, {}, "", "2026-01-01T00:00:00", None, None, "", "")
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


HOSTILE = "</pre></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}{% raw %}`\x00\ud800"
EDGES = {
    "nothing": bare(),
    "one round": record(rounds=1),
    "one client": record(clients=["only"], cohort=1, per_client=False),
    "interrupted": record(status="interrupted"),
    "failed": record(status="failed"),
    "running": record(status="running"),
    "not started": bare(status="created"),
    "an unknown status": bare(status="paused"),
    "all failed": record(failing=1.0),
    "asynchronous": record(stale=True),
    "no metrics": bare(series=tuple(Point(r, "train", "a", "seconds", 1.0, r + 1.0) for r in range(3))),
    "not a number": bare(series=tuple(Point(r, "train", c, n, math.nan, r + 1.0) for r in range(3) for c in (None, "a", "b")
                                      for n in ("loss", "seconds", "bytes_up", "age", "examples"))),
    "infinite": bare(series=tuple(Point(r, "evaluate", None, "loss", math.inf, 1.0) for r in range(3))),
    "only failures": bare(incidents=(Incident(0, "train", "a", "failure", "lost: gone", 1.0),)),
    "from Python": bare(config={"name": "digits", "seed": 0, "task": "classification", "data": None}),
    "a table that is a name": bare(config={"atoll": 1, "data": "digits", "samples": None}),
}  # fmt: skip


def hostile() -> Record:
    made = record(clients=[HOSTILE, "_b", "$x$"], cohort=3, rounds=3, name=HOSTILE, failing=0.3)
    return dataclasses.replace(
        made,
        error=HOSTILE,
        status="failed",
        environment=HOSTILE,
        folder=HOSTILE,
        versions={HOSTILE: HOSTILE},
        config={**made.config, HOSTILE: HOSTILE, "data": {HOSTILE: HOSTILE}},
        notes=(Note("before", HOSTILE), Note("after", HOSTILE), Note(HOSTILE, HOSTILE)),
        series=(*made.series, Point(0, HOSTILE, None, HOSTILE, 1.0, 1.0), Point(1, HOSTILE, None, HOSTILE, 1.0, 1.0)),
        incidents=(
            *made.incidents,
            *(Incident(0, HOSTILE, HOSTILE, kind, HOSTILE, 1.0) for kind in ("failure", "late", HOSTILE)),
        ),
    )


@pytest.mark.parametrize("name", EDGES)
def test_any_run_makes_a_page(name: str) -> None:
    made = EDGES[name]
    read = Reader(render(made))
    assert f"Federated run {made.id}" in read.text.replace("\n", " ")


@pytest.mark.parametrize("made", [record(), hostile()], ids=["ordinary", "hostile"])
def test_a_page_asks_for_nothing_and_runs_nothing(made: Record) -> None:
    page = render(made)
    read = Reader(page)
    assert {"script", "img", "iframe", "link", "object"}.isdisjoint(tag for tag, _ in read.elements)
    for tag, attributes in read.elements:
        assert not any(key.startswith("on") for key in attributes), tag
        for key in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(key) or "#").startswith("#"), (tag, attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert "default-src 'none'" in page
    page.encode("utf-8")


@pytest.mark.parametrize("made", [record(), record(stale=True), hostile()], ids=["ordinary", "stale", "hostile"])
def test_ids_are_unique_and_links_lead_somewhere(made: Record) -> None:
    elements = Reader(render(made)).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"] for tag, attributes in elements if tag == "a"} <= {f"#{each}" for each in ids}


def test_hostile_text_is_shown_as_it_is() -> None:
    text = Reader(render(hostile())).text
    assert "<script>alert(1)</script>" in text
    assert "{{ 7*7 }}" in text
    assert "\x00" not in text


def test_every_drawing_has_words_and_a_table() -> None:
    page = render(record())
    elements = Reader(page).elements
    drawings = [a for _, a in elements if a.get("role") == "img"]
    assert len(drawings) >= 7
    assert all(len(a.get("aria-label") or "") > 20 for a in drawings)
    assert page.count("<summary>Numbers</summary>") == len(drawings)


def test_the_outcome_stands_at_the_top() -> None:
    points = (
        Point(0, "baseline", None, "loss", 2.5, 1.0), Point(0, "baseline", None, "accuracy", 0.1, 1.0),
        Point(1, "evaluate", None, "loss", 0.5, 61.0), Point(1, "evaluate", None, "accuracy", 0.875, 61.0),
        Point(1, "train", "north", "bytes_up", 1.5e6, 50.0),
    )  # fmt: skip
    text = Reader(render(bare(series=points))).text
    assert (
        "Held-out loss from 2.5 to 0.5; held-out accuracy from 10.0 % to 87.5 %; 2 rounds; 1 min 1 s; 0 B down, 1.5 MB up."
        in text
    )


@pytest.mark.parametrize(("status", "said"), [
    ("failed", "Stopped after 1 of 4 rounds: the disk is full."),
    ("interrupted", "Stopped after 1 of 4 rounds. atoll resume a-1 goes on from the last checkpoint, to the same bits."),
])  # fmt: skip
def test_a_run_that_stopped_says_why(status: str, said: str) -> None:
    made = bare(status=status, rounds=4, error="the disk is full.", series=(Point(0, "evaluate", None, "loss", 1.0, 1.0),))
    assert said in Reader(render(made)).text


def test_the_configuration_can_be_copied_into_a_job_file() -> None:
    page = render(record())
    shown = [html.unescape(text) for text in re.findall(r'<pre tabindex="0">(.*?)</pre>', page, re.DOTALL)]
    policy = {key: value for key, value in CONFIG["policy"].items() if value is not None}  # type: ignore[attr-defined]
    assert tomllib.loads(shown[0]) == {**CONFIG, "policy": policy}
    assert "atoll run shakespeare-lora.toml" in shown[1]


def test_failures_are_listed_with_who_when_and_why() -> None:
    incidents = tuple(Incident(r, "train", f"c{r}", "failure", "lost: gone", 1.0) for r in range(250))
    page = render(bare(incidents=incidents))
    assert "250 failures" in page
    assert "The first 200 of 250." in page
    assert re.search(r"<td>7</td><td>train</td><td>c6</td><td class=\"why\">lost: gone</td>", page)


def test_samples_are_paired_and_their_prompt_is_told_apart() -> None:
    notes = [Note("passage before", "To be a"), Note("passage after", "To be, or"), Note("task", "a model")]
    samples, rest = pair(notes, "To be")
    assert [(s.title, s.prompt, s.before, s.after) for s in samples] == [("passage", "To be", " a", ", or")]
    assert rest == notes[2:]
    alone, _ = pair([Note("Before training", "x")], "To be")
    assert (alone[0].title, alone[0].prompt, alone[0].before, alone[0].after) == ("", "", "x", None)


def test_a_large_run_is_a_small_page() -> None:
    made = record(clients=[f"client-{i}" for i in range(400)], rounds=1500, cohort=12, per_client=False, stale=True)
    started = time.process_time()
    page = render(made)
    assert len(page.encode()) < 1_500_000
    assert time.process_time() - started < 20  # about 3 s alone; here only to notice a square
