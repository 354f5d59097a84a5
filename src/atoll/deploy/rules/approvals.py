"""Consent: which jobs a person at the site has approved or denied, by the SHA-256 of what the job says and of its code.

A job in which one value was changed is another job, and nobody has consented to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from atoll.deploy.rules.judge import Offer, Refusal, Usage, judge
from atoll.deploy.rules.policy import SitePolicy
from atoll.errors import StoreError, UnknownName, unknown
from atoll.store import files

_CONSENT = "consent.json"
Decision = Literal["approved", "denied"]


@dataclass(frozen=True)
class Consent:
    """What a site has been asked, and what was decided."""

    name: str
    digest: str  # SHA-256 of the job's text
    bundle_digest: str = ""  # of the code that comes with it
    sender: str = ""
    asked: str = ""  # when, ISO 8601 in UTC
    status: str = "waiting"  # "waiting" | "approved" | "denied"
    by: str = ""
    decided: str = ""
    why: str = ""
    refusals: tuple[str, ...] = ()  # what the policy said when it was last judged

    @property
    def key(self) -> str:
        """What it is kept under."""
        if not self.bundle_digest:
            return self.digest
        return hashlib.sha256(f"{self.digest}\n{self.bundle_digest}\n".encode()).hexdigest()


class Consents:
    """The consents in a site's folder: for each job a folder with what it says, for a person to read, and the decision.

    >>> import tempfile
    >>> from atoll.job.check import check
    >>> from atoll.job.templates import named
    >>> from atoll.job.text import parse
    >>> document = parse(named("hospitals", "hearts"))
    >>> offer = Offer(check(document), document.values, sender="university")
    >>> consents = Consents(tempfile.mkdtemp())
    >>> consents.ask(offer).status
    'waiting'
    >>> consents.decide("hearts", "approved", by="anna").status
    'approved'
    >>> consents.of(Offer(offer.job, {**offer.values, "rounds": 21})) is None
    True
    """

    def __init__(self, folder: str | Path) -> None:
        """`folder`: the site's; the consents lie in `consents` within."""
        self.folder = Path(folder) / "consents"

    def ask(self, offer: Offer, refusals: Sequence[Refusal] = ()) -> Consent:
        """The consent to a job as it stands; one that was not known waits for a person from now on.

        Raises:
            StoreError: the folder can't be read or written.
        """
        told = tuple(str(each) for each in refusals)
        known = self.of(offer)
        if known is None:
            name = offer.title or offer.digest[:12]
            known = Consent(name, offer.digest, offer.bundle_digest, offer.sender, _now(), refusals=told)
            files.make_folder(self.folder / known.key)
            text = json.dumps(offer.values, indent=1).encode()
            with files.replacing(self.job_path(known), len(text), durable=True) as file:
                file.write(text)
            return self._kept(known)
        return known if known.refusals == told else self._kept(replace(known, refusals=told))

    def of(self, offer: Offer) -> Consent | None:
        """The consent to exactly this text and code, or None."""
        key = Consent(offer.title, offer.digest, offer.bundle_digest).key
        path = self.folder / key / _CONSENT
        return self._read(path) if path.exists() else None

    def decide(self, job: str, decision: Decision, by: str, why: str = "") -> Consent:
        """Approve or deny a job by its name, its SHA-256 or the beginning of that.

        Raises:
            UnknownName: no job, or more than one, is meant.
            StoreError: the folder can't be read or written.
        """
        return self._kept(replace(self.find(job), status=decision, by=by, decided=_now(), why=why))

    def find(self, job: str) -> Consent:
        """The one job that is meant by a name, a SHA-256 or the beginning of one. Raises UnknownName."""
        known = self.all()
        meant = [each for each in known if each.name == job] or [each for each in known if each.key.startswith(job)]
        if len(meant) > 1:
            listed = ", ".join(each.key[:12] for each in meant)
            raise UnknownName(f"{job!r} may be any of {len(meant)} jobs: {listed}; give the beginning of one's SHA-256")
        if not meant:
            raise unknown("job", job, [x for each in known for x in (each.name, each.key[:12])])
        return meant[0]

    def all(self) -> list[Consent]:
        """Every job that the site was asked to take part in, the earliest first."""
        return sorted((self._read(path) for path in self.folder.glob(f"*/{_CONSENT}")), key=lambda each: (each.asked, each.key))

    def job_path(self, consent: Consent) -> Path:
        """Where what the job says lies, for a person to read."""
        return self.folder / consent.key / "job.json"

    def _kept(self, consent: Consent) -> Consent:
        written = json.dumps(asdict(consent), indent=1).encode()
        with files.replacing(self.folder / consent.key / _CONSENT, len(written), durable=True) as file:
            file.write(written)
        return consent

    def _read(self, path: Path) -> Consent:
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            consent = Consent(**{**given, "refusals": tuple(given["refusals"])})
        except OSError as error:
            raise files.trouble(error, path) from error
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{path} is no consent ({error}); delete it, and the job is asked for again") from error
        if consent.key != path.parent.name:  # a file that was copied or renamed is no consent to another text
            raise StoreError(f"{path} is the consent to another job, {consent.key[:12]}; delete it")
        return consent


class Admission(NamedTuple):
    """What a site answers to a job."""

    status: Literal["admitted", "waiting", "denied", "refused"]
    text: str  # one sentence for the one who offered it
    refusals: tuple[Refusal, ...] = ()


def admit(policy: SitePolicy, offer: Offer, usage: Usage, consents: Consents) -> Admission:
    """The policy's verdict and the person's together: to be asked before a job begins, and again before each round.

    Raises:
        StoreError: the site's folder can't be read or written.
    """
    refusals = tuple(judge(policy, offer, usage))
    lasting = [each for each in refusals if not each.for_now]
    consent = consents.ask(offer, lasting)
    if consent.status == "denied":
        return Admission("denied", f"the site has denied this job{f': {consent.why}' if consent.why else ''}", refusals)
    if lasting:
        return Admission("refused", "; ".join(map(str, lasting)), refusals)
    if policy.approval == "manual" and consent.status != "approved":
        return Admission("waiting", f"the site's consent is awaited: `atoll site approve {consent.key[:12]}` there", refusals)
    if refusals:
        return Admission("waiting", "; ".join(map(str, refusals)), refusals)
    return Admission("admitted", "the site takes part", ())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
