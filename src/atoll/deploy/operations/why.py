"""What a job waits for now, in sentences, worst first: each names site, client, round, cause and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

from atoll.deploy.operations.status import SILENT_S, ClientState, Live, SiteState, Status, Trouble
from atoll.report.units import count, duration, size

BLOCKED, STALLED, FAILED, GOING, CLOSING, ASIDE = range(6)  # ranks of a reason, worst first
STALLED_S = {"fetching": 20.0, "pushing": 20.0, "training": 120.0}  # without any move
_MOST = 8  # reasons of one rank that are said in full
_LAST = 5  # failures of a run that has ended


class Reason(NamedTuple):
    """One thing that the job waits for."""

    rank: int
    order: float  # among those of one rank
    text: str


def headline(status: Status) -> str:
    """Where the run is, in a line.

    >>> headline(Status("hearts-1", "hearts", "finished", 10, 10, 0.0))
    'hearts-1: finished, 10 of 10 rounds'
    """
    live = status.live
    if status.state != "running" or live is None:
        return f"{status.run}: {status.state}, {status.rounds_done} of {count(status.rounds, 'round')}"
    told = f"{status.run}: running, round {min(live.round + 1, status.rounds)} of {status.rounds}"
    answers, failed = sum(each.heard for each in live.clients), len(_lost_now(live))
    asked = sum(each.round is not None and not each.heard for each in live.clients) + answers + failed
    if asked and live.asked is not None:
        told += f", {live.work!r}: {answers} of {count(asked, 'client')} answered"
        told += f", {failed} failed" if failed else ""
        closes = live.rules.close_after or asked
        told += f", closes with the first {closes}" if closes < asked else ""
        told += f", asked {_age(status.now - live.asked)} ago"
    return told


def reasons(status: Status) -> list[str]:
    """What the run waits for, or how it ended; never empty."""
    live = status.live
    if status.state != "running":
        return [*_ended(status)]
    if live is None:
        where = "it was begun with `atoll run`, or its folder is on another machine, which `--coordinator` asks"
        return [f"{status.run} is running, and no coordinator writes of it here: {where}."]
    found = [*_unheard(status, live), *_absent(status, live), *_at_work(status, live), *_lost(live), *_deadline(status, live)]
    if not any(each.rank in (BLOCKED, STALLED, GOING) for each in found):
        found.append(Reason(GOING, 0.0, _own(live)))
    return [*_shortened(sorted(found))]


def doing(client: ClientState, site: SiteState | None, live: Live, now: float) -> str:
    """What one client of that site is at, in a few words for a table."""
    if site is not None and not _takes_part(site):
        return _state(site, live, now)
    if client.round is None:
        failed = _lost_now(live).get(client.client)
        return "has answered" if client.heard else f"failed: {failed}" if failed else "nothing is asked of it"
    for_s = "" if client.since is None else f", for {_age(now - client.since)}"
    if client.text and client.doing in ("training", "pushing"):
        return f"its answer can't be taken: {client.text}"
    if client.doing == "training":
        step = f"step {client.done} of {client.total}" if client.total else f"step {client.done}"
        return f"training, {step}{for_s}"
    if client.doing in ("fetching", "pushing"):
        what = "fetching the model" if client.doing == "fetching" else "sending its answer"
        return f"{what}{_share(client)}{for_s}"
    if client.doing == "answered":
        return "its answer is here, and not folded yet"
    return f"waiting: {client.text}" if client.text else "waiting for its turn"


def _ended(status: Status) -> Iterator[str]:
    """How a run that is not running ended, and its last failures."""
    run, live, done = status.run, status.live, status.rounds_done
    at = "" if status.finished is None else f" at {clock(datetime.fromisoformat(status.finished).timestamp(), status.now)}"
    again = "Serve the same job again" if live is not None else f"Go on with `atoll resume {run}`"
    goes_on = f"{again}: it goes on after round {done}." if done else f"{again}: it begins anew, since no round is done."
    if status.state == "finished":
        yield f"{run} is finished{at}: {count(done, 'round')} of {status.rounds} are done, and nobody is waited for."
        return
    if status.state == "failed":
        told = f": {status.error.rstrip('.')}" if status.error else ""
        yield f"{run} failed in round {min(done + 1, status.rounds)} of {status.rounds}{at}{told}. {goes_on}"
    elif status.state == "created":
        yield f"{run} was made and never begun. {again}."
    elif live is not None:
        heard = f"it was last heard at {clock(live.at, status.now)} ({_age(status.now - live.at)} ago)"
        where = f"in round {min(live.round + 1, status.rounds)} of {status.rounds}"
        yield f"The coordinator of {run} is stopped or was killed: {heard}, {where}. {goes_on}"
    else:
        yield f"{run} was stopped after round {done} of {status.rounds}. {goes_on}"
    for each in status.failures[-_LAST:]:
        yield f"{_failed(each, live)}."


def _unheard(status: Status, live: Live) -> Iterator[Reason]:
    """A coordinator that lives and writes nothing."""
    silent_s = status.now - live.at
    if silent_s > SILENT_S:
        why = "its process lives, and hangs, or its machine is overloaded or asleep"
        mend = "Look at that machine; if it stays so, end the process and serve the same job again"
        since = f"What follows is what it said at {clock(live.at, status.now)}"
        yield Reason(BLOCKED, -1.0, f"The coordinator has not been heard for {_age(silent_s)}: {why}. {mend}. {since}.")


def _absent(status: Status, live: Live) -> Iterator[Reason]:
    """Sites that are offline or do not take part, and whether anybody waits for them."""
    asked, here = any(each.round is not None for each in live.clients), any(map(_takes_part, live.sites))
    clients: dict[str, list[ClientState]] = {}
    for each in live.clients:
        clients.setdefault(each.site, []).append(each)
    for site in live.sites:
        if _takes_part(site):
            continue
        mine = clients.get(site.site, [])
        waited = [each for each in mine if each.round is not None]
        begins = not asked and not live.own
        rank = BLOCKED if waited or begins else ASIDE
        if not live.whole and not waited:
            means = "Nothing is asked of it meanwhile."
        elif begins and not here:
            means = f"Round {live.round + 1} can't begin, since no site is there that takes part."
        elif site.online and site.consent == "refused":
            rank, means = FAILED, f"Nobody waits for it; rounds go on without {_its(mine, site)}."
        elif waited:
            means = _waited(waited, site, status, live)
        elif begins:
            means = _begins(status, live)
        else:
            are = "is" if len(mine) < 2 else "are"
            means = f"Nobody waits for it; {_its(mine, site)} {are} asked again when it is there."
        order = site.since if site.since is not None else live.began
        yield Reason(rank, order, f"{site.site}: {_state(site, live, status.now)}. {means}{_mend(site)}")


def _waited(waited: Sequence[ClientState], site: SiteState, status: Status, live: Live) -> str:
    """What it means that a site is not there whose clients have been asked."""
    which = f"Round {min(each.round or 0 for each in waited) + 1} waits for {_its(waited, site)}"
    work = ", ".join(sorted({each.work for each in waited}))
    when = f"after {_age(live.rules.patience_s)} without it"
    if not site.online:
        seen = max(each for each in (site.since, live.asked, live.began) if each is not None)
        when = f"at about {clock(seen + live.rules.patience_s, status.now)}"
    return f"{which} ({work}); {when} that counts as lost, and the round goes on by its policy."


def _begins(status: Status, live: Live) -> str:
    """When a round begins without a site that is not there."""
    rules, which = live.rules, f"Round {live.round + 1}"
    there = sum(map(_takes_part, live.sites))
    if live.round == live.first and rules.start_with is not None:
        return f"{which} begins when {count(rules.start_with, 'site')} are there that take part, and {there} are."
    between_s = rules.timeout_s if rules.timeout_s is not None and live.round > live.first else rules.patience_s
    until = clock(live.opened + min(rules.patience_s, between_s), status.now)
    enough = "" if rules.enough is None else f", or with {count(rules.enough, 'client')}"
    return f"{which} waits for it until {until}{enough}, then begins with those that are there."


def _state(site: SiteState, live: Live, now: float) -> str:
    """Why a site does not take part just now, in a few words."""
    if not site.online and site.since is None:
        return f"has not called since the coordinator began at {clock(live.began, now)} ({_age(now - live.began)} ago)"
    if not site.online:
        return f"offline since {clock(site.since or 0.0, now)} ({_age(now - (site.since or 0.0))})"
    if site.consent == "waiting":
        return f"has not agreed yet: {site.reason}"
    if site.consent == "refused":
        return f"refuses the job: {site.reason.rstrip('.')}"
    return "connected, and has not answered the invitation: it reads its data and builds its part of the job"


def _mend(site: SiteState) -> str:
    if not site.online:
        return " Start it there with `atoll join`; if it runs, it says itself why it is not connected."
    if site.consent == "refused":
        return " Whoever runs the site can change its policy or its data; or change the job."
    return "" if site.consent == "waiting" else " If that lasts, look at what `atoll join` says there."


def _at_work(status: Status, live: Live) -> Iterator[Reason]:
    """Clients that have been asked and can answer."""
    there = {each.site: each for each in live.sites if _takes_part(each)}
    busy = {each.site: each for each in live.clients if each.doing == "training"}
    for each in live.clients:
        if each.round is None or each.site not in there:
            continue
        who = each.client if each.client == each.site else f"{each.client} at {each.site}"
        text = f"{who}, round {each.round + 1} ({each.work}): {doing(each, there[each.site], live, status.now)}"
        if each.doing == "waiting" and not each.text and each.site in busy:
            text += f"; {each.site} is at work for {busy[each.site].client}"
        silent_s = 0.0 if each.moved is None else status.now - each.moved
        stuck = silent_s > STALLED_S.get(each.doing, float("inf")) or bool(each.text)
        share = 2.0 if each.doing == "answered" else each.done / each.total if each.total else 0.0
        order = share + {"pushing": 1.0}.get(each.doing, 0.0)
        yield Reason(STALLED if stuck else GOING, order, f"{text}.{_stuck(each, silent_s, status, live) if stuck else ''}")


def _stuck(client: ClientState, silent_s: float, status: Status, live: Live) -> str:
    """What is said of a client that does not move."""
    if client.text:
        where = client.site if client.doing == "waiting" else "the coordinator"
        return f" Mend that at {where}; it tries again by itself."
    if client.doing == "training":
        lost = clock((client.moved or status.now) + 2 * live.rules.lease_s, status.now)  # see `flight`: the first may go on
        return f" No step for {_age(silent_s)}: look at the machine of {client.site}. If that lasts it is lost by {lost}."
    return f" Nothing has come for {_age(silent_s)}: the line is slow or broken; it goes on where it stopped, by itself."


def _lost(live: Live) -> Iterator[Reason]:
    """Clients that failed in the open round."""
    means = "The policy stops the job" if live.rules.on_failure == "stop" else "The round goes on without that answer"
    for i, each in enumerate(live.lost):
        yield Reason(FAILED, -i, f"{_failed(each, live)}. {means}.")


def _failed(trouble: Trouble, live: Live | None) -> str:
    site = next((each.site for each in live.clients if each.client == trouble.client), "") if live else ""
    who = f"{trouble.client} at {site}" if site and site != trouble.client else trouble.client
    return f"{who} failed in round {trouble.round + 1} ({trouble.work}): {trouble.text.rstrip('.')}"


def _deadline(status: Status, live: Live) -> Iterator[Reason]:
    if live.rules.timeout_s is not None and live.asked is not None:
        ends = live.asked + live.rules.timeout_s
        left = f"in {_age(ends - status.now)}" if ends > status.now else "now"
        text = f"Round {live.round + 1} closes at its deadline, {clock(ends, status.now)} ({left}), with the answers that it has."
        yield Reason(CLOSING, 0.0, text)


def _own(live: Live) -> str:
    """Nobody else is waited for."""
    if not live.whole:
        return "Nothing is asked of this site now; what the round waits for at other sites is not told to it."
    if live.doing == "training":
        does = "folds answers, judges the model or writes a checkpoint"
        return f"No client is asked now: in round {live.round + 1} the coordinator {does}."
    return f"No client is asked now: the coordinator is {live.doing}."


def _shortened(found: Iterable[Reason]) -> Iterator[str]:
    for _, group in groupby(found, lambda each: each.rank):
        same = list(group)
        yield from (each.text for each in same[:_MOST])
        if len(same) > _MOST:
            yield f"And {len(same) - _MOST} more like these; `atoll status` lists them all."


def _takes_part(site: SiteState) -> bool:
    return site.online and site.consent == "accepted"


def _lost_now(live: Live) -> dict[str, str]:
    """Clients that failed at what is asked for now, or was last, and how."""
    return {each.client: each.text for each in live.lost if each.work == live.work}


def _share(client: ClientState) -> str:
    if not client.total:
        return ""
    return f", {100 * client.done // client.total} % ({size(client.done)} of {size(client.total)})"


def _names(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def _its(clients: Sequence[ClientState], site: SiteState) -> str:
    names = [each.client for each in clients]
    return "it" if names in ([], [site.site]) else f"its {_names(names)}"


def clock(moment: float, now: float) -> str:
    """A time of the day, with the date where that is another one than today."""
    at, today = datetime.fromtimestamp(moment), datetime.fromtimestamp(now)
    return f"{at:%H:%M:%S}" if at.date() == today.date() else f"{at:%Y-%m-%d %H:%M:%S}"


def _age(seconds: float) -> str:
    return duration(float(max(round(seconds), 0))).removesuffix(" 0 s").removesuffix(" 0 min")
