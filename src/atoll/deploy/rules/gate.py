"""The one way into and out of a site: every job, assignment and answer goes by the policy, and is in the audit log.

A record is on disk before its answer may leave. An answer that is sent twice, since a kill came between, has one record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from atoll.deploy.audit import AuditLog
from atoll.deploy.rules.approvals import Admission, Consents, admit
from atoll.deploy.rules.judge import Offer, Refusal, Usage
from atoll.deploy.rules.permit import Declared, permit, permit_work, told_by
from atoll.deploy.rules.policy import SitePolicy
from atoll.deploy.rules.signatures import load_key
from atoll.deploy.verify import records
from atoll.errors import AtollError
from atoll.remote.values import Place, place_of
from atoll.types import Answer, Assignment, ClientId, Failure

LOG, KEY = "audit.jsonl", "audit.key"
_SHOWN = 8  # tensors whose names, dtypes and shapes a record gives; all of them are in its digest


class Gate:
    """A site's policy, consents, and log, in the site's folder. `to`: the coordinator, as the log calls it."""

    def __init__(
        self,
        folder: str | Path,
        policy: SitePolicy,
        to: str,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Open or begin the log; what left before is read from it. Raises StoreError where it is damaged."""
        self.policy, self.consents = policy, Consents(folder)
        self.log = log_of(folder)
        self.to, self._now = to, now
        self._said: dict[tuple[str, str], str] = {}  # run and SHA-256 of each job -> what was last said of it
        self._left: dict[str, dict[tuple[Place, str], int]] = {}  # run -> answer and its SHA-256 -> bytes
        self._withheld: dict[tuple[str, Place], bool] = {}
        self._budgets: dict[tuple[str, str], tuple[float, float]] = {}  # run and SHA-256 -> epsilon, delta, as declared
        for record in records(self.log.path):
            self._recall(record)

    def _recall(self, record: dict[str, Any]) -> None:
        if record["event"] == "left":
            place = Place(record["round"], ClientId(record["client"]), record["work"])
            self._left.setdefault(record["job"], {})[place, record["sha256"]] = record["bytes"]
            self._withheld[record["job"], place] = bool(record["withheld"])
        elif record["event"] == "admitted":
            self._budgets[record["job"], record["digest"]] = (record["epsilon"], record["delta"])

    def admit(self, offer: Offer, usage: Usage | None = None) -> Admission:
        """Whether the job may begin, or go on; what changes in the answer is logged.

        `usage`: threads, memory and jobs under way; budgets and the hour are filled in here. Each run of a job spends its budget.
        """
        own = (offer.run or offer.title, offer.digest)
        others = [budget for run, budget in self._budgets.items() if run != own]
        epsilon, delta = sum(each[0] for each in others), sum(each[1] for each in others)
        usage = replace(usage or Usage(), now=self._now(), epsilon=epsilon, delta=delta)
        found = admit(self.policy, offer, usage, self.consents)
        if self._said.get(own) != found.status:
            self._said[own] = found.status
            declared = offer.job.privacy
            budget = (declared.epsilon, declared.delta) if declared else (0.0, 0.0)
            told = {"job": own[0], "name": offer.title, "digest": offer.digest, "sender": offer.sender, "text": found.text[:2000]}
            self.log.append(found.status, **told, epsilon=budget[0], delta=budget[1])
            if found.status == "admitted":
                self._budgets[own] = budget
        return found

    def enter(self, job: str, assignment: Assignment, admission: Admission | None = None) -> Failure | None:
        """An assignment that came: logged, and None where its work may be done, else what to answer at once.

        `admission`: that of its job now, where it may have changed since the job began.
        """
        refusals = permit_work(self.policy, assignment.work)
        if admission is not None and admission.status != "admitted":
            refusals.append(Refusal(admission.status, admission.text))
        self.log.append("came", job=job, **_place(assignment), **_contents(assignment), sender=self.to)
        if not refusals:
            return None
        failure = self._refused(job, assignment, refusals)
        self._logged(job, failure, _digest(failure), withheld=True)
        return failure

    def leave(self, job: str, answer: Answer, declared: Declared) -> Answer:
        """What may leave in the place of the answer: itself, or a Failure that names the rule and quotes nothing.

        The record of it is on disk when this returns; only then may it be put in the outbox.
        """
        if isinstance(answer, Failure):
            answer = told_by(answer, self.policy)
        try:
            digest = _digest(answer)
        except AtollError:
            digest = ""  # nothing that a frame carries: `permit` says so
        refusals = permit(answer, self.policy, Usage(*self._bytes(job, answer.round, (place_of(answer), digest))), declared)
        if refusals:
            answer = self._refused(job, answer, refusals)
            digest = _digest(answer)
        self._logged(job, answer, digest, withheld=bool(refusals))
        return answer

    def withheld(self, job: str, place: Place) -> bool:
        """The answer stayed here, and a failure left in its stead: the client memory that goes with it is not to be kept."""
        return self._withheld.get((job, place), False)

    def _bytes(self, job: str, round: int, own: tuple[Place, str]) -> tuple[int, int]:
        """What has left of the job in the round, and in all; the very frame that is sent once more is not counted again."""
        others = [(key[0].round, size) for key, size in self._left.get(job, {}).items() if key != own]
        return sum(size for at, size in others if at == round), sum(size for _, size in others)

    def _refused(self, job: str, what: Assignment | Answer, refusals: list[Refusal]) -> Failure:
        told = [str(each)[:1000] for each in refusals[:16]]
        self.log.append("refused", job=job, **_place(what), refusals=told)
        rules = ", ".join(dict.fromkeys(each.rule for each in refusals))
        return Failure(what.round, what.client, what.work, "error", f"refused by the site's policy: {rules}")

    def _logged(self, job: str, answer: Answer, digest: str, *, withheld: bool) -> None:
        key = (place_of(answer), digest)
        if key not in self._left.get(job, {}) or self.withheld(job, key[0]) != withheld:
            contents = {**_contents(answer), "sha256": digest}
            self.log.append("left", job=job, **_place(answer), **contents, to=self.to, withheld=withheld)
            self._left.setdefault(job, {})[key] = contents["bytes"]
            self._withheld[job, key[0]] = withheld


def _place(value: Assignment | Answer) -> dict[str, Any]:
    return {"round": value.round, "client": value.client, "work": value.work}


def _contents(value: Assignment | Answer) -> dict[str, Any]:
    """What a frame holds, without its numbers: kind, bytes, tensors, and metrics by name."""
    from atoll.wire import frame
    from atoll.wire.table import table_of

    told: dict[str, Any] = {"kind": type(value).__name__.lower(), "bytes": frame.size(value).total}
    if isinstance(value, Failure):
        return {**told, "reason": value.reason[:1000]}
    table = table_of(value.tree)
    shown = [f"{e.name[:80]} {str(e.dtype).removeprefix('torch.')} {list(e.shape)}" for e in table.entries[:_SHOWN]]
    told |= {"tensors": len(table.entries), "numbers": table.numbers, "codecs": list(table.codecs)[:_SHOWN], "first": shown}
    metrics = {} if isinstance(value, Assignment) else {"metrics": sorted(name[:80] for name in value.metrics)[:64]}
    return {**told, **metrics}


def _digest(answer: Answer) -> str:
    """SHA-256 of its frame."""
    from atoll.wire import frame

    digest = hashlib.sha256()
    for piece in frame.write(answer):
        digest.update(piece)
    return digest.hexdigest()


def log_of(folder: str | Path) -> AuditLog:
    """The log of a site's folder, signed where an `audit.key` lies there. Raises as `AuditLog` and `load_key` do."""
    key = Path(folder) / KEY
    return AuditLog(Path(folder) / LOG, load_key(key) if key.exists() else None)
