"""What a person sees of a run, from its events."""

from __future__ import annotations

import io

from rich.console import Console

from atoll.cli.progress import Progress
from atoll.types import ClientId, Event


def shown(*events: Event, terminal: bool = False) -> str:
    out = io.StringIO()
    with Progress(2, Console(file=out, force_terminal=terminal, width=200), asked=2) as progress:
        progress.say("training")
        for event in events:
            progress.emit(event)
    return out.getvalue()


def update(client: str, work: str = "train", round: int = 0) -> Event:
    return Event("update", round, work, ClientId(client), {"bytes_up": 1000.0, "bytes_down": 3000.0})


def test_plain_lines_when_there_is_no_terminal() -> None:
    lines = shown(
        Event("reduced", 0, "baseline", metrics={"loss": 2.0, "heard": 4}),
        update("a"),
        update("a"),
        update("held-out/0", "evaluate"),
        Event("failure", 0, "train", ClientId("b"), text="not_finite: its loss is nan"),
        Event("reduced", 0, "train", metrics={"loss": 9.0}),
        Event("reduced", 0, "evaluate", metrics={"loss": 1.5, "accuracy": 0.25, "seconds": 3.0}),
        Event("round", 0),
        Event("round", 1),
    ).splitlines()
    assert lines[:3] == ["training", "before training: loss 2", "round 1: client b failed: not_finite: its loss is nan"]
    assert lines[3].startswith("round 1/2  1/2 clients, 1 lost  loss 1.5  accuracy 0.25  8 kB  "), lines[3]
    assert lines[3].endswith(" to go")
    assert lines[4] == "round 2/2  0/2 clients  loss 1.5  accuracy 0.25  8 kB"


def test_without_evaluation_the_training_loss_is_shown_as_such() -> None:
    assert "training loss 0.5" in shown(Event("reduced", 0, "train", metrics={"loss": 0.5, "examples": 10.0}), Event("round", 0))


def test_a_live_line_on_a_terminal() -> None:
    drawn = shown(update("a"), Event("round", 0), terminal=True)
    assert "\x1b[" in drawn
    assert "round 2/2" in drawn
