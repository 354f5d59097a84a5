"""The site's end: it calls the coordinator, and calls again for ever; what it has answered waits on its disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atoll.remote.values import Credentials, Limits, Place, SiteEvent
from atoll.types import Answer


class Link:
    """Owns a connection, one background thread, and a folder: trees half fetched, and the outbox. Closed by `close`.

    One link a folder; a link serves all jobs of its site. After a kill, a new link over the same folder goes on.
    """

    def __init__(
        self,
        address: str,  # "host:port" of the coordinator
        credentials: Credentials | None,  # None: without TLS, on loopback and with `insecure` only
        site: str,  # its own name: what the certificate says counts, this is for logs and for `insecure`
        folder: Path,
        *,
        insecure: bool = False,
        limits: Limits = Limits(),  # noqa: B008
        server_name: str | None = None,  # in the coordinator's certificate, where it is not the host of the address
    ) -> None:
        """Begin to connect; nobody waits for it. Raises ConfigError where TLS is missing and not waived."""
        raise NotImplementedError

    @property
    def online(self) -> bool:
        """There is a session now."""
        raise NotImplementedError

    @property
    def trouble(self) -> str:
        """Why there is no session, in a sentence; "" while there is one. A refusal of the protocol's version is said here."""
        raise NotImplementedError

    def events(self, timeout_s: float) -> Iterator[SiteEvent]:
        """What the coordinator says, in one order, so that a memory is committed before the next offer is seen.

        Ends after `timeout_s` without an event. An `Offered` comes once its tree is here, and once only in a process:
        after a restart of the site, what is unanswered is offered again.
        """
        raise NotImplementedError

    def consent(self, job: str, accepted: bool, reason: str = "", about: bytes = b"") -> None:
        """Answer an invitation; said again at every reconnection. Nothing is offered before it."""
        raise NotImplementedError

    def answer(self, job: str, answer: Answer) -> None:
        """Write the answer to the outbox, then send it, and again until it is acknowledged or refused.

        On return it survives the death of the process. Propose the client's memory before this call. Raises StoreError
        where the disk is full, FrameError where the answer is nothing that a frame carries.
        """
        raise NotImplementedError

    def outbox(self) -> frozenset[tuple[str, Place]]:
        """Answers that are neither acknowledged nor refused: (job, place). Their proposed memories must be kept."""
        raise NotImplementedError

    def say(self, job: str, place: Place, step: int, steps: int = 0) -> None:
        """Training is at `step` of `steps` (0: not known): what liveness is judged by. Cheap: call it at every step."""
        raise NotImplementedError

    def log(self, job: str, line: str) -> None:
        """Send a line of the site's log, if there is a session; what the policy of the site forbids is not given here."""
        raise NotImplementedError

    def ask(self, question: str, body: bytes = b"", timeout_s: float = 30.0) -> bytes:
        """Ask the coordinator something of the layer above. Raises RemoteError with its refusal, or where it is not there."""
        raise NotImplementedError

    def renew(self, credentials: Credentials) -> None:
        """Use this certificate from now on: the session is made anew, transfers go on where they were."""
        raise NotImplementedError

    def close(self, timeout_s: float = 2.0) -> None:
        """End the session. Within `timeout_s`, what is being sent goes on."""
        raise NotImplementedError
