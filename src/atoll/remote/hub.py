"""The coordinator's end: offers go out, answers come in, each call plain and thread-safe; sites open no port."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from atoll.remote.values import Consent, Credentials, Limits, Progress
from atoll.types import Answer, Assignment, ClientId, Update


class Hub:
    """Owns the port, one background thread, and a folder of spooled trees and updates. One hub serves many jobs."""

    def __init__(
        self,
        address: str,  # "host:port"; port 0: any free one
        credentials: Credentials | None,  # None: without TLS, on loopback and with `insecure` only
        folder: Path,
        *,
        who: Callable[[bytes], str] | None = None,  # certificate in PEM -> site; raises AtollError where it is revoked or unknown
        insecure: bool = False,
        limits: Limits = Limits(),  # noqa: B008
        ask: Callable[[str, str, bytes], bytes] | None = None,  # (site, question, body) -> body, for `Link.ask`
        heard: Callable[[str, str, str], None] | None = None,  # (site, job, line): what `Link.log` sends
    ) -> None:
        """Listen. Raises RemoteError where the port can't be had, ConfigError where TLS is missing and not waived."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """Where sites reach it, "host:port"."""
        raise NotImplementedError

    def open(self, job: str, sites: Mapping[ClientId, str], brief: bytes = b"", accepted: Iterable[Answer] = ()) -> None:
        """Invite the sites that speak for these clients; call it again when somebody joins or leaves.

        `accepted`: after a restart, what the journal has of the open round, so that the sites are told.
        """
        raise NotImplementedError

    def consents(self, job: str) -> Mapping[str, Consent]:
        """What the sites have said to the invitation, by site; a site that has not spoken is absent."""
        raise NotImplementedError

    def online(self, job: str) -> frozenset[ClientId]:
        """Clients whose site has a session now and has accepted the job."""
        raise NotImplementedError

    def wait(self, job: str, timeout_s: float) -> None:
        """Return when anything has changed for the job (a site came, spoke, went, answered), or after `timeout_s`."""
        raise NotImplementedError

    def offer(self, job: str, assignments: Iterable[Assignment]) -> None:
        """Ask for this work. A tree that several assignments share is written once; nothing of it is held in memory.

        Offers outlive a lost connection; a site that already holds the answer to the same question sends that.
        """
        raise NotImplementedError

    def answers(self, job: str, timeout_s: float) -> Iterator[Answer]:
        """Answers as they land, each read from disk when its turn comes. Ends when nothing is outstanding or time is up.

        An update that can't be read is given as a Failure of the kind "invalid".
        """
        raise NotImplementedError

    def acknowledge(self, job: str, update: Update) -> None:
        """The update is in the journal: tell its site, now or when it is next there, and free the disk."""
        raise NotImplementedError

    def refuse(self, job: str, answer: Answer) -> None:
        """The answer is not wanted: tell its site, and free the disk."""
        raise NotImplementedError

    def cancel(self, job: str, round: int, work: str) -> None:
        """Withdraw what is outstanding of this work."""
        raise NotImplementedError

    def progress(self, job: str) -> Mapping[ClientId, Progress]:
        """What each client is at: for leases, for `atoll status` and `atoll why`."""
        raise NotImplementedError

    def sites(self) -> Mapping[str, float]:
        """Seconds since each site that has a session was last heard, whatever its jobs."""
        raise NotImplementedError

    def close(self, job: str) -> None:
        """The job has ended: tell its sites, and free what is spooled for it."""
        raise NotImplementedError

    def renew(self, credentials: Credentials) -> None:
        """Use this certificate from the next handshake on; sessions go on."""
        raise NotImplementedError

    def expel(self, site: str) -> None:
        """End the sessions of a site, as after its certificate was revoked: `who` is asked when it comes again."""
        raise NotImplementedError

    def stop(self, grace_s: float = 2.0) -> None:
        """Let calls end for `grace_s`, then end. What is unanswered is offered again by the next hub."""
        raise NotImplementedError
