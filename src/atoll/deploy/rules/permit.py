"""What is about to leave a site, against its policy and what the job's algorithm declares: nothing else passes.

This is the last look before an answer is written to the outbox. It does not trust the code that made the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.deploy.rules.judge import MIB, Refusal, Usage
from atoll.deploy.rules.policy import SitePolicy
from atoll.errors import AtollError
from atoll.types import Answer, Assignment, Failure, Request, Tree, Update

if TYPE_CHECKING:
    from atoll.wire.table import Entry

WITHHELD = "the site keeps the reason to itself"
_SHOWN = 3  # tensors that a sentence names


@dataclass(frozen=True)
class Declared:
    """The message that a kind of work may send.

    `like`: names, shapes and dtypes of the tree that the server folds, after `decode` of what crosses the network. Without it
    (what the server asks varies, and only the assignment is known), `names`: those of the tensors received, which may
    come back in their own shapes or encoded; of what is encoded only the names and the bytes are then looked at.
    """

    work: str
    like: Tree | None = None
    decode: Callable[[Update], Update] | None = None
    names: Tree | None = None
    metrics: frozenset[str] | None = None  # None: as the policy says
    codecs: frozenset[str] | None = None  # whose parts `names` may be spelled in; None: any


def declared_by(request: Request, metrics: Iterable[str] | None = None) -> Declared:
    """What a request of the job's algorithm, built at the site, says that its answers are."""
    return Declared(request.work, request.like, request.decode, None, None if metrics is None else frozenset(metrics))


def declared_by_assignment(assignment: Assignment, metrics: Iterable[str] | None = None) -> Declared:
    """What can be said by the assignment alone: the answer speaks of the tensors that were sent, and of no other."""
    return Declared(assignment.work, names=received(assignment), metrics=None if metrics is None else frozenset(metrics))


def received(assignment: Assignment) -> Tree:
    """Names, shapes and dtypes of what was sent, less what transforms sent beside it (`~clip/norm`)."""
    return outline({name: x for name, x in assignment.tree.items() if not name.startswith("~")})


def outline(values: Tree) -> Tree:
    """Names, shapes and dtypes, without the numbers."""
    return {name: x.new_empty(x.shape, device="meta") for name, x in values.items()}


def permit(answer: Answer, policy: SitePolicy, usage: Usage, declared: Declared) -> list[Refusal]:
    """Every reason to keep the answer here; empty where it may leave.

    `usage`: the bytes that have left before it. Raises nothing for what the answer holds: a tree that no codec of the job made
    is a refusal.

    >>> import torch
    >>> from atoll.deploy.rules.policy import read_policy
    >>> from atoll.types import ClientId
    >>> declared = Declared("train", like={"w": torch.zeros(2)})
    >>> more = Update(0, ClientId("north"), "train", {"w": torch.ones(2), "rows": torch.ones(9)}, 8.0, {})
    >>> print(*permit(more, read_policy("site_policy = 1"), Usage(), declared))
    declared: the update of 'train' in round 0 holds 'rows', which the job's algorithm does not declare; nothing left the site
    """
    found = list(permit_work(policy, answer.work))
    if answer.work != declared.work:
        found.append(
            Refusal("declared", f"an answer to {answer.work!r} was made where {declared.work!r} was asked; nothing left")
        )
    if isinstance(answer, Failure):
        return [*found, *_reason(answer, policy)]
    found += _numbers(answer, policy, declared)
    try:
        return [*found, *_bytes(answer, policy, usage), *_tensors(answer, declared)]
    except AtollError as error:
        told = f"the update of {answer.work!r} in round {answer.round} is none that can be sent ({error}); nothing left the site"
        return [*found, Refusal("declared", told)]


def permit_work(policy: SitePolicy, work: str) -> list[Refusal]:
    """Whether a kind of work may be done for others at all; for an assignment, before it is computed."""
    allowed = policy.leaves.work
    if allowed is None or work in allowed:
        return []
    told = f"the work {work!r} is none of {', '.join(allowed)}; ask the site to allow it, or leave it out of the job"
    return [Refusal("[leaves] work", told)]


def told_by(failure: Failure, policy: SitePolicy) -> Failure:
    """The failure as the policy lets it leave: an error's own words may quote data.

    >>> from atoll.deploy.rules.policy import read_policy
    >>> from atoll.types import ClientId
    >>> failure = Failure(0, ClientId("north"), "train", "error", "could not read 'Jane Doe' as a number")
    >>> told_by(failure, read_policy("site_policy = 1")).reason
    'the site keeps the reason to itself'
    """
    return failure if policy.leaves.reasons else failure._replace(reason=WITHHELD)


def _reason(failure: Failure, policy: SitePolicy) -> Iterator[Refusal]:
    if not policy.leaves.reasons and failure.reason not in ("", WITHHELD):
        yield Refusal("[leaves] reasons", "a failure's reason may not leave; send it as `told_by` gives it")


def _numbers(update: Update, policy: SitePolicy, declared: Declared) -> Iterator[Refusal]:
    """What is no tensor: the metrics by name, the number of examples, and nothing hidden in what is not a number."""
    at = f"the update of {update.work!r} in round {update.round}"
    names, allowed = set(update.metrics), policy.leaves.metrics
    if allowed is not None and (more := sorted(names - set(allowed))):
        told = f"{at} has the metric {more[0]!r}; this site allows {', '.join(allowed) or 'none'}: allow it, or don't compute it"
        yield Refusal("[leaves] metrics", told)
    if declared.metrics is not None and (more := sorted(names - declared.metrics)):
        yield Refusal("declared", f"{at} has the metric {more[0]!r}, which the job does not declare; nothing left the site")
    if not policy.leaves.example_counts and update.weight != 1.0:
        told = f"{at} weighs {update.weight:g}, its number of examples; this site does not tell it: use uniform weights"
        yield Refusal("[leaves] example_counts", told)
    if not (math.isfinite(update.weight) and update.weight >= 0 and update.weight == int(update.weight)):
        yield Refusal("declared", f"{at} weighs {update.weight}, which is no number of examples; nothing left the site")


def _bytes(update: Update, policy: SitePolicy, usage: Usage) -> Iterator[Refusal]:
    from atoll.wire import frame

    rules, size = policy.leaves, frame.size(update).total
    rows = (("round_mib", rules.round_mib, usage.round_bytes), ("job_mib", rules.job_mib, usage.job_bytes))
    for key, limit, before in rows:
        if limit is not None and before + size > limit * MIB:
            told = (
                f"the update of {update.work!r} in round {update.round} has {size} bytes, after {before} that have left; this "
                f"site allows {limit:g} MiB {'a round' if key == 'round_mib' else 'a job'}: compress it, or ask for more"
            )
            yield Refusal(f"[leaves] {key}", told)


def _tensors(update: Update, declared: Declared) -> Iterator[Refusal]:
    from atoll.wire.table import table_of

    at = f"the update of {update.work!r} in round {update.round}"
    if declared.like is None:
        yield from _named(update, declared, at)
        return
    try:
        plain = update if declared.decode is None else declared.decode(update)
    except AtollError as error:
        yield Refusal("declared", f"{at} is not what the job's codecs make ({error}); nothing left the site")
        return
    wanted, found = ({entry.name: entry for entry in table_of(each).entries} for each in (declared.like, plain.tree))
    yield from _more(at, sorted(found.keys() - wanted.keys()))
    for name in sorted(wanted.keys() - found.keys())[:_SHOWN]:
        yield Refusal("declared", f"{at} lacks {name!r}, which the job's algorithm declares; nothing left the site")
    odd = sorted(name for name in wanted.keys() & found.keys() if not _fits(found[name], wanted[name]))
    for name in odd[:_SHOWN]:
        told = f"{at} has {name!r} as {_shape(found[name])}, declared as {_shape(wanted[name])}; nothing left the site"
        yield Refusal("declared", told)


def _named(update: Update, declared: Declared, at: str) -> Iterator[Refusal]:
    """By the assignment alone: names that came, as they came or as codecs spell them, and not more bytes than came."""
    from atoll.wire.table import table_of

    if declared.names is None:
        yield Refusal("declared", f"nothing says what an answer to {update.work!r} may hold; nothing left the site")
        return
    sent, entries = table_of(declared.names), table_of(update.tree).entries
    known = {entry.name: entry for entry in sent.entries}
    yield from _more(at, sorted(entry.name for entry in entries if not _is_of(entry.name, known.keys(), declared.codecs)))
    for entry in entries:
        if (came := known.get(entry.name)) is not None and not _fits(entry, came):
            told = f"{at} has {entry.name!r} as {_shape(entry)}, received as {_shape(came)}; nothing left the site"
            yield Refusal("declared", told)
    held = sum(entry.size_bytes for entry in entries)
    if held > 2 * sent.size_bytes + 4096:  # codecs that help little may cost some bytes; data would cost more
        told = f"{at} holds {held} bytes of tensors, more than twice the {sent.size_bytes} received; nothing left the site"
        yield Refusal("declared", told)


def _fits(found: Entry, wanted: Entry) -> bool:
    """The same shape, and the same dtype or a narrower one of floating point."""
    if found.shape != wanted.shape:
        return False
    floats = found.dtype.is_floating_point and wanted.dtype.is_floating_point
    return found.dtype == wanted.dtype or (floats and found.dtype.itemsize < wanted.dtype.itemsize)


def _is_of(name: str, known: Container[str], codecs: Container[str] | None) -> bool:
    """A tensor that was received, or a codec's part of one (`w~int8/1=scales`) or of all of them (`top_k/1=values`)."""
    own, _, part = name.rpartition("~")
    codec, sign, _ = part.partition("=")
    if name in known:
        return True
    declared = codecs is None or codec.partition("/")[0] in codecs
    return bool(sign and "/" in codec and declared and (not own or _is_of(own, known, codecs)))


def _more(at: str, names: list[str]) -> Iterator[Refusal]:
    for name in names[:_SHOWN]:
        yield Refusal("declared", f"{at} holds {name[:80]!r}, which the job's algorithm does not declare; nothing left the site")


def _shape(entry: Entry) -> str:
    return f"{str(entry.dtype).removeprefix('torch.')} {list(entry.shape)}"
