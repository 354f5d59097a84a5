"""The coordinator's end: offers go out, answers come in, each call plain and thread-safe; sites open no port."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import grpc
import grpc.aio

from atoll.errors import ConfigError, FrameError, RemoteError, StoreError
from atoll.remote import heap
from atoll.remote import protocol_pb2 as pb
from atoll.remote.channel import SERVER_OPTIONS, check_address, handlers, server_credentials
from atoll.remote.contents import load, pieces
from atoll.remote.desk import Desk, Task
from atoll.remote.floor import Floor, ending
from atoll.remote.loop import Loop
from atoll.remote.recorded import recorded
from atoll.remote.service import Service
from atoll.remote.spool import Spool, spelled
from atoll.remote.values import Blob, Consent, Credentials, Limits, Place, Presence, Progress, place_of
from atoll.types import Answer, Assignment, ClientId, Failure, Update


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
        ask: Callable[[str, str, bytes], bytes] | None = None,  # (who, question, body) -> body, for `Link.ask`
        who_asks: Callable[[bytes], str] | None = None,  # as `who`, of those who may `ask`; None: sites alone
        heard: Callable[[str, str, str], None] | None = None,  # (site, job, line): what `Link.log` sends
        refused: Callable[[str, str, str], object] | None = None,  # (caller, what it asked, why not), for a record of it
    ) -> None:
        """Listen. Raises RemoteError where the port can't be had, ConfigError where TLS is missing and not waived."""
        check_address(address, credentials, insecure)
        if credentials is not None and who is None:
            raise ConfigError("a hub with certificates needs `who`, which says whose they are; give one (atoll.identity)")
        self.folder, self.limits, self._credentials = folder, limits, credentials
        self.release = importlib.metadata.version("atoll")
        shutil.rmtree(folder / "trees", ignore_errors=True)  # offered anew, they are written anew
        self._floor = Floor(folder, limits, heard or _unheard, ask)
        heap.share()
        self._loop = Loop("atoll-hub")
        believed = who if credentials is not None else None
        self._service = Service(self._floor, self.release, believed, limits, self._loop.loop, who_asks)
        self._calls = recorded(self._service, believed, refused or _unheard, self._service.threads)
        try:
            self._server, self._address = self._loop.run(self._listen(address), 30.0)
        except BaseException:
            self._loop.close()
            raise

    async def _listen(self, address: str) -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((handlers(self._calls),))
        try:
            if self._credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, server_credentials(self._now))
        except (RuntimeError, ValueError) as error:
            raise RemoteError(f"{address} can't be listened on ({error}); is another coordinator running?") from None
        if not port:
            raise RemoteError(f"{address} can't be listened on; is another coordinator running?")
        await server.start()
        return server, f"{address.rpartition(':')[0]}:{port}"

    def _now(self) -> Credentials:
        assert self._credentials is not None
        return self._credentials

    @property
    def address(self) -> str:
        """Where sites reach it, "host:port"."""
        return self._address

    def open(self, job: str, sites: Mapping[ClientId, str], brief: bytes = b"", accepted: Iterable[Answer] = ()) -> None:
        """Invite the sites that speak for these clients; call it again when somebody joins or leaves.

        `accepted`: after a restart, what the journal has of the open round, so that the sites are told.
        """
        with self._floor.changed:
            desk = self._floor.desks.get(job)
            if desk is None:
                desk = self._floor.desks[job] = Desk(job, self.folder / "jobs" / spelled(job))
                self._floor.inboxes[job] = Spool(self.folder / "jobs" / spelled(job) / "inbox", self.limits)
                self._floor.ended.discard(job)
            before = {} if desk.failed else {site: desk.invitation(site) for site in desk.members()}
            desk.sites, desk.brief, desk.failed = dict(sites), brief, ""
            desk.accepted |= {place_of(answer) for answer in accepted if isinstance(answer, Update)}
            for site, session in self._floor.sessions.items():
                if site in desk.members() and desk.invitation(site) != before.get(site):
                    self._floor.greet(desk, session)
            self._floor.changed.notify_all()

    def consents(self, job: str) -> Mapping[str, Consent]:
        """What the sites have said to the invitation, by site; a site that has not spoken is absent."""
        with self._floor.changed:
            return dict(self._floor.desk(job).consents)

    def online(self, job: str) -> frozenset[ClientId]:
        """Clients whose site has a session now and has accepted the job."""
        with self._floor.changed:
            desk = self._floor.desk(job)
            there = {site for site in self._floor.sessions if desk.takes_part(site)}
            return frozenset(client for client, site in desk.sites.items() if site in there)

    def wait(self, job: str, timeout_s: float) -> None:
        """Return when anything has changed for the job (a site came, spoke, went, answered), or after `timeout_s`."""
        with self._floor.changed:
            self._floor.changed.wait(timeout_s)

    def offer(self, job: str, assignments: Iterable[Assignment]) -> None:
        """Ask for this work. A tree that several assignments share is written once; nothing of it is held in memory.

        Offers outlive a lost connection; a site that already holds the answer to the same question sends that.
        """
        written: dict[int, Blob] = {}  # by the tree's identity, while `asked` holds it
        asked = list(assignments)
        with self._floor.changed:
            desk = self._floor.desk(job)
            self._floor.offering += 1
        try:
            for assignment in asked:
                blob = written.get(id(assignment.tree)) or self._write(assignment)
                written[id(assignment.tree)] = blob
                with self._floor.changed:
                    self._offer(desk, assignment, blob)
        finally:
            with self._floor.changed:
                self._floor.offering -= 1
                self._floor.sweep()

    def _write(self, assignment: Assignment) -> Blob:
        """The tree as a blob: a frame that is the same for whoever is sent it, with any seed."""
        plain = assignment._replace(round=0, client=ClientId(""), work="", seed=0)
        return self._floor.trees.put(pieces(plain))

    def _offer(self, desk: Desk, assignment: Assignment, blob: Blob) -> None:
        place = place_of(assignment)
        if assignment.client not in desk.sites:
            raise RemoteError(
                f"no site speaks for the client {assignment.client!r} of the job {desk.job!r}; is it still a member?"
            )
        task = Task(place, desk.sites[assignment.client], assignment.seed, blob)
        before = desk.tasks.get(place)
        if before is None or before.key != task.key:
            desk.tasks[place] = task
            if task.site in self._floor.sessions and desk.takes_part(task.site):
                self._floor.sessions[task.site].say(task.offer(desk.job))
        elif before.here and place not in desk.landed:  # asked again, as by a run that was resumed
            desk.landed.append(place)
            self._floor.changed.notify_all()

    def answers(self, job: str, timeout_s: float) -> Iterator[Answer]:
        """Answers as they land, each read from disk when its turn comes. Ends when nothing is outstanding or time is up.

        An update that can't be read is given as a Failure of the kind "invalid".
        """
        ends = time.monotonic() + timeout_s
        while True:
            with self._floor.changed:
                desk = self._floor.desk(job)
                while not desk.landed:
                    left_s = ends - time.monotonic()
                    if left_s <= 0 or all(task.here for task in desk.tasks.values()):
                        return
                    self._floor.changed.wait(left_s)
                task = desk.tasks[desk.landed.popleft()]
            yield self._read(job, task)

    def _read(self, job: str, task: Task) -> Answer:
        if task.answer is None:
            return Failure(*task.place, "invalid", task.broken)
        try:
            found = load(self._floor.inboxes[job].path(task.answer))
        except (FrameError, StoreError) as error:
            return Failure(*task.place, "invalid", str(error))
        if isinstance(found, Assignment) or place_of(found) != task.place:
            return Failure(*task.place, "invalid", f"the site {task.site} sent something that is no answer to this work")
        return found

    def acknowledge(self, job: str, update: Update) -> None:
        """The update is in the journal: tell its site, now or when it is next there, and free the disk."""
        self._settle(job, place_of(update), True)

    def refuse(self, job: str, answer: Answer) -> None:
        """The answer is not wanted: tell its site, which stops if it is still at work, and free the disk."""
        self._settle(job, place_of(answer), False)

    def _settle(self, job: str, place: Place, accepted: bool) -> None:
        with self._floor.changed:
            desk = self._floor.desk(job)
            task = desk.tasks.pop(place, None)
            site = task.site if task else desk.sites.get(place.client)
            if site is not None:
                digest = task.answer.digest if task and task.answer else ""
                message = desk.settle(place, digest, site, accepted)
                if site in self._floor.sessions:
                    self._floor.sessions[site].say(message)
            self._floor.free(desk, [task] if task else [])

    def cancel(self, job: str, round: int, work: str) -> None:
        """Withdraw what is outstanding of this work."""
        with self._floor.changed:
            desk = self._floor.desk(job)
            gone = [task for place, task in desk.tasks.items() if (place.round, place.work) == (round, work)]
            message = pb.CoordinatorMessage(cancel=pb.Cancel(job=job, round=round, work=work))
            for site in {task.site for task in gone}:
                self._floor.tell(site, message)
            for task in gone:
                del desk.tasks[task.place]
            self._floor.free(desk, gone)

    def progress(self, job: str) -> Mapping[ClientId, Progress]:
        """What each client is at: for leases, for `atoll status` and `atoll why`."""
        with self._floor.changed:
            return self._floor.desk(job).progress(self._floor.sessions.keys(), self._floor.went_s)

    def presence(self, job: str) -> Mapping[str, Presence]:
        """The sites of a job: whether each is there, and what it has said to the invitation."""
        with self._floor.changed:
            return self._floor.desk(job).presence(self._floor.sessions.keys(), self._floor.heard_s, self._floor.went_s)

    def unconfirmed(self, job: str) -> frozenset[str]:
        """Sites that have not said yet that they know what of theirs was accepted, and that their memory is committed."""
        with self._floor.changed:
            desk = self._floor.desk(job)
            return frozenset(site for site, accepted in desk.settled.values() if accepted and site in desk.members())

    def sites(self) -> Mapping[str, float]:
        """Seconds since each site that has a session was last heard, whatever its jobs."""
        with self._floor.changed:
            return {site: time.monotonic() - self._floor.heard_s[site] for site in self._floor.sessions}

    def still_s(self, site: str) -> float:
        """Seconds since anything that this site is asked for, in any job, was seen to move; 0 where it is asked for nothing."""
        with self._floor.changed:
            tasks = [task for desk in self._floor.desks.values() for task in desk.tasks.values()]
            moved_s = [task.moved_s for task in tasks if task.site == site and not task.here]
        return time.monotonic() - max(moved_s) if moved_s else 0.0

    def close(self, job: str) -> None:
        """The job has ended: tell its sites, and free what is spooled for it."""
        with self._floor.changed:
            self._floor.ended.add(job)
            desk = self._floor.desks.pop(job, None)
            if desk is None:  # ended before this hub began; sites that still keep something of it are told
                for site, held in self._floor.held.items():
                    if any(parcel.place.job == job for parcel in held):
                        self._floor.tell(site, ending(job))
                return
            for site in desk.members():
                if site not in self._floor.sessions:
                    for message in desk.greeting(site):
                        self._floor.tell(site, message)
                self._floor.tell(site, ending(job))
            self._floor.inboxes.pop(job).close()
            shutil.rmtree(self.folder / "jobs" / spelled(job), ignore_errors=True)
            self._floor.sweep()
            self._floor.changed.notify_all()

    def fail(self, job: str, why: str) -> None:
        """The job has failed here, and may be opened again: tell its sites, now or when they are next there."""
        with self._floor.changed:
            desk = self._floor.desks.get(job)
            if desk is None:
                return  # nobody was invited
            gone, desk.failed = list(desk.tasks.values()), why
            desk.tasks.clear()
            self._floor.free(desk, gone)
            for site in desk.members() & self._floor.sessions.keys():
                self._floor.tell(site, ending(job, why))

    def turns(self, timeout_s: float) -> bool:
        """Does its thread take up a call within this time? If not, only a restart helps."""
        return self._loop.turns(timeout_s)

    def renew(self, credentials: Credentials) -> None:
        """Use this certificate from the next handshake on; sessions go on."""
        self._credentials = credentials

    def expel(self, site: str) -> None:
        """End the sessions of a site, as after its certificate was revoked: `who` is asked when it comes again."""
        with self._floor.changed:
            if site in self._floor.sessions:
                self._floor.sessions[site].say(None)

    def stop(self, grace_s: float = 2.0) -> None:
        """Let calls end for `grace_s`, then end. What is unanswered is offered again by the next hub."""
        with self._floor.changed:
            for session in self._floor.sessions.values():
                session.say(None)
        self._loop.run(self._server.stop(grace_s), grace_s + 10.0)
        self._loop.close()
        self._service.close()
        for spool in (self._floor.trees, *self._floor.inboxes.values()):
            spool.close()


def _unheard(*told: str) -> None:
    """Lines of logs, and refusals, that nobody listens to."""
