"""The report of one run: a single HTML page that opens from a disk, prints, and asks nothing of any network.

Everything that comes from a record is text and is escaped; the page's own policy forbids scripts and requests as well.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.report import cost, learning, outcome, participation
from atoll.report.facts import COSTS, Facts, read, shown_round
from atoll.report.plot import Plot, Table
from atoll.report.toml import document
from atoll.report.units import count
from atoll.store.record import Incident, Note, Record

if TYPE_CHECKING:
    from jinja2 import Environment

INCIDENTS = 200  # rows of the failures table


class Sample(NamedTuple):
    """A passage as the model continued it before and after training; one of the two may be missing."""

    title: str
    prompt: str
    before: str | None
    after: str | None


class Section(NamedTuple):
    """A heading with its plots."""

    id: str
    title: str
    plots: Sequence[Plot]
    figures: Sequence[tuple[str, str]] = ()
    note: str = ""


def render(record: Record) -> str:
    """The report of `record` as one HTML document.

    >>> page = render(
    ...     Record("a-1", "<b>a</b>", "finished", 0, 2, {"rounds": 2}, {}, "", "2026-01-01T00:00:00", None, None, "", "")
    ... )
    >>> "&lt;b&gt;a&lt;/b&gt;" in page, "<script" in page
    (True, False)
    """
    facts = read(record)
    chip, tone = outcome.STATUS.get(record.status, (record.status, "quiet"))
    samples, notes = pair(record.notes, str(_table(record, "samples").get("prompt", "")))
    failures = record.failures
    others = [incident for incident in record.incidents if incident.kind != "failure"]
    html = environment().get_template("page.html").render(
        record=record,
        chip=chip,
        tone=tone,
        sentence=outcome.sentence(record, facts),
        ending=outcome.ending(record, facts),
        tiles=outcome.tiles(record, facts),
        sections=[section for section in _sections(facts) if section.plots or section.note],
        samples=samples,
        notes=[note for note in notes if not _is_short(note)],
        failures=_incidents(failures),
        failures_title=count(len(failures), "failure"),
        others=_incidents(others),
        others_title=count(len(others), "other event"),
        about=_about(record),
        data=[*_data(record, facts), *((note.title, note.text) for note in notes if _is_short(note))],
        data_plots=list(participation.examples(facts)),
        versions=sorted(record.versions.items()),
        config=document(record.config),
        commands=_commands(record),
    )  # fmt: skip
    return printable(html)


@functools.cache
def environment() -> Environment:
    """The templates, with every value escaped that is not made in this package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("atoll.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["svg"] = Markup  # only ever given Plot.svg
    made.filters["code_spans"] = _code_spans
    return made


def printable(html: str) -> str:
    """The document without what no encoding can hold or no browser shows: lone surrogates and control characters."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", html)


def pair(notes: Sequence[Note], prompt: str = "") -> tuple[list[Sample], list[Note]]:
    """Notes whose titles differ only in "before" and "after", side by side; and the others.

    >>> samples, rest = pair([Note("before", "It was a a a"), Note("after", "It was night."), Note("task", "a CNN")], "It was")
    >>> samples[0].before, samples[0].after, rest
    (' a a a', ' night.', [Note(title='task', text='a CNN')])
    """
    found: dict[str, dict[str, str]] = {}
    rest = []
    for note in notes:
        when = re.search(r"\b(before|after)\b", note.title, re.IGNORECASE)
        if when is None:
            rest.append(note)
            continue
        left, right = note.title[: when.start()].rstrip(" ,:-–("), note.title[when.end() :].lstrip(" ,:-–)")
        stem = " ".join(part for part in (left, "" if right.lower() in {"training", "it"} else right) if part)
        found.setdefault(stem, {})[when.group().lower()] = note.text
    samples = []
    for stem, texts in found.items():
        start = prompt if prompt and all(text.startswith(prompt) for text in texts.values()) else ""
        cut = {when: text[len(start) :] for when, text in texts.items()}
        samples.append(Sample(stem, start, cut.get("before"), cut.get("after")))
    return samples, rest


def _sections(facts: Facts) -> list[Section]:
    whole = list(learning.by_round(facts))
    return [
        Section("learning", "Learning", whole, note="" if whole else "No metric was recorded."),
        Section("clients", "Clients", list(learning.by_client(facts)), learning.fairness(facts)),
        Section("participation", "Participation", [*participation.heat_map(facts), *cost.staleness(facts)]),
        Section("cost", "Time and bytes", [*cost.time(facts), *cost.bytes_(facts)], cost.compression(facts)),
    ]


def _incidents(incidents: Sequence[Incident]) -> Table:
    rows = [
        [str(shown_round(i)), i.work or "–", i.client or "–", i.text if i.kind == "failure" else f"{i.kind}: {i.text}"]
        for i in incidents[:INCIDENTS]
    ]
    more = f"The first {INCIDENTS} of {len(incidents):,}." if len(incidents) > INCIDENTS else ""
    return Table(("round", "work", "client", "why"), rows, more)


def _about(record: Record) -> list[tuple[str, str]]:
    facts = [
        ("Run", record.id),
        ("Seed", str(record.seed)),
        ("Created", _when(record.created)),
        ("Started", _when(record.started)),
        ("Ended", _when(record.finished)),
        ("Machine", record.environment),
        ("Folder", record.folder),
    ]
    return [(name, value) for name, value in facts if value]


def _data(record: Record, facts: Facts) -> list[tuple[str, str]]:
    found = [(name, _brief(value)) for name, value in flat(_table(record, "data")).items()]
    if clients := facts.clients:
        found.append(("clients seen in this run", f"{len(clients):,}"))
    held = [max((at.value for at in s), default=0.0) for s in facts.each.get(("train", "examples"), {}).values()]
    if held:
        found.append(("examples a client and round", f"{min(held):,.0f} to {max(held):,.0f}"))
    judged = sorted({name for _, name in facts.whole if name not in COSTS})
    if judged:
        found.append(("measured", ", ".join(judged)))
    return found


def _is_short(note: Note) -> bool:
    return len(note.text) <= 200 and "\n" not in note.text.strip()


def _table(record: Record, name: str) -> Mapping[str, Any]:
    """One table of the configuration, empty where there is none; a run from Python has no job file."""
    found = record.config.get(name)
    return found if isinstance(found, Mapping) else {"name": found} if found else {}


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names.

    >>> flat({"data": {"name": "digits"}, "transforms": [{"name": "clip"}]})
    {'data.name': 'digits', 'transforms.0.name': 'clip'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Mapping) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        elif value is not None:
            found[f"{before}{key}"] = value
    return found


def _commands(record: Record) -> str:
    version = record.versions.get("atoll", "")
    install = f"pip install {shlex.quote(f'atoll=={version}')}\n" if version else ""
    if "atoll" not in record.config:
        return f"{install}# then run the same program, with seed {record.seed}"
    file = re.sub(r"[^A-Za-z0-9._-]+", "-", record.name).strip("-.") or "job"
    return f"{install}# save the configuration below as {file}.toml\natoll run {file}.toml"


def _when(moment: str | None) -> str:
    """An ISO 8601 moment to the second, as it is read aloud."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)", moment or "")
    return f"{found[1]} {found[2]} UTC" if found else moment or ""


def _brief(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_brief(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _code_spans(text: str) -> str:
    """`text` escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    parts = str(text).split("`")
    shown = [
        Markup("<code>{}</code>").format(part) if i % 2 and i < len(parts) - 1 else escape(part) for i, part in enumerate(parts)
    ]
    return Markup("").join(shown)
