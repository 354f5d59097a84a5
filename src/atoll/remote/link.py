"""The site's end: it calls the coordinator, and calls again for ever; what it has answered waits on its disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio

from atoll.errors import AtollError, RemoteError
from atoll.remote import protocol_pb2 as pb
from atoll.remote.bench import Bench, Work, consent_to
from atoll.remote.caller import Caller
from atoll.remote.channel import check_address
from atoll.remote.contents import load
from atoll.remote.loop import Loop
from atoll.remote.values import Consent, Credentials, Limits, Offered, Place, SiteEvent
from atoll.types import Answer, Assignment, Failure


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
        check_address(address, credentials, insecure)
        self._bench, self._site = Bench(folder, limits), site
        self._loop = Loop("atoll-link")
        self._caller = Caller(address, credentials, site, server_name, self._bench, limits)
        self._calling = asyncio.run_coroutine_threadsafe(self._caller.forever(), self._loop.loop)

    @property
    def online(self) -> bool:
        """There is a session now."""
        return self._caller.online

    @property
    def trouble(self) -> str:
        """Why there is no session, in a sentence; "" while there is one. A refusal of the protocol's version is said here."""
        return self._caller.trouble

    def events(self, timeout_s: float) -> Iterator[SiteEvent]:
        """What the coordinator says, in one order, so that a memory is committed before the next offer is seen.

        Ends after `timeout_s` without an event. An event counts as dealt with when the next is asked for: an
        acknowledgement that was not comes again. An `Offered` comes once its tree is here, and once only in a process:
        after a restart of the site, what is unanswered is offered again.
        """
        ends = time.monotonic() + timeout_s
        while True:
            with self._bench.changed:
                while not self._bench.items:
                    if self._calling.done() and not self._calling.cancelled():
                        self._calling.result()  # raises what ended it, which is a defect
                    left_s = ends - time.monotonic()
                    if left_s <= 0:
                        return
                    self._bench.changed.wait(min(left_s, 1.0))
                item = self._bench.items.popleft()
            event = self._read(item) if isinstance(item, Work) else item
            if event is not None:
                dealt_with = False
                try:
                    yield event
                    dealt_with = True
                finally:
                    if not dealt_with:
                        self._bench.put_back(event)
                self._bench.dealt_with(event)
            del event, item  # before the next tree is read: a model less of memory
            ends = time.monotonic() + timeout_s

    def _read(self, work: Work) -> Offered | None:
        """A fetched work as it was offered; one whose tree can't be read is answered with a failure."""
        try:
            found = load(self._bench.trees.path(work.tree))
        except AtollError as error:
            if self._bench.begin(work):  # else it was withdrawn, and its file with it
                self.answer(work.job, Failure(*work.place, "error", f"its site can't read what it was sent: {error}"))
            return None
        if not self._bench.begin(work):
            return None
        if not isinstance(found, Assignment):
            self.answer(work.job, Failure(*work.place, "error", "its site was sent a tree that is none"))
            return None
        round, client, kind = work.place
        return Offered(work.job, found._replace(round=round, client=client, work=kind, seed=work.seed))

    def consent(self, job: str, accepted: bool, reason: str = "", about: bytes = b"") -> None:
        """Answer an invitation; said again at every reconnection. Nothing is offered before it."""
        with self._bench.changed:
            consent = self._bench.consents[job] = Consent(accepted, reason, about)
            self._bench.say(consent_to(job, consent))

    def answer(self, job: str, answer: Answer) -> None:
        """Write the answer to the outbox, then send it, and again until it is acknowledged or refused.

        On return it survives the death of the process. Propose the client's memory before this call. What nobody wants
        any more is dropped. Raises StoreError where the disk is full, FrameError where it is nothing that a frame carries.
        """
        letter = self._bench.answered(job, Place(answer.round, answer.client, answer.work), answer)
        if letter is not None:
            self._loop.soon(self._caller.post, letter)

    def outbox(self) -> frozenset[tuple[str, Place]]:
        """Answers that are neither acknowledged nor refused: (job, place). Their proposed memories must be kept."""
        with self._bench.changed:
            return frozenset(self._bench.outbox.letters)

    def say(self, job: str, place: Place, step: int, steps: int = 0) -> None:
        """Training is at `step` of `steps` (0: not known): what liveness is judged by. Cheap: call it at every step."""
        work = self._bench.works.get((job, place))
        if work is not None:
            work.step, work.steps = step, steps

    def wanted(self, job: str, place: Place) -> bool:
        """Whether the work that was offered last for this place is still wanted. Cheap: ask at every step."""
        work = self._bench.works.get((job, place))
        return work is not None and work.state == "given"

    def log(self, job: str, line: str) -> None:
        """Send a line of the site's log, if there is a session; what the policy of the site forbids is not given here."""
        with self._bench.changed:
            self._bench.say(pb.SiteMessage(line=pb.Line(job=job, text=line[:4096])))

    def ask(self, question: str, body: bytes = b"", timeout_s: float = 30.0) -> bytes:
        """Ask the coordinator something of the layer above. Raises RemoteError with its refusal, or where it is not there."""
        line = self._caller.line
        if line is None or not self.online:
            raise RemoteError(f"the coordinator can't be asked now: {self.trouble or 'there is no line to it'}")
        try:
            reply = self._loop.run(line.question(pb.Question(name=question, body=body), timeout_s), timeout_s + 1.0)
        except grpc.aio.AioRpcError as error:
            raise RemoteError(error.details() or "the line was lost") from None
        except (TimeoutError, asyncio.CancelledError):
            raise RemoteError(f"the coordinator gave no answer within {timeout_s:g} s") from None
        return bytes(reply.body)

    def turns(self, timeout_s: float) -> bool:
        """Does its thread take up a call within this time? If not, only a restart helps."""
        return self._loop.turns(timeout_s)

    def renew(self, credentials: Credentials) -> None:
        """Use this certificate from now on: the session is made anew, transfers go on where they were."""
        self._loop.soon(self._caller.renew, credentials)

    def close(self) -> None:
        """End the session and the thread. What is in the folder stays, for the next link."""
        self._calling.cancel()
        self._loop.close()
        self._caller.close()
        self._bench.trees.close()
        self._bench.outbox.close()
