"""What the two ends of a deployment say to each other, as plain values: no socket, no asyncio, no generated class."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple, TypeAlias

from atoll.types import Answer, Assignment, ClientId

CHUNK_BYTES = 1 << 20  # of a tree or an update in one message: what a cut line costs at most
LEAST_CHUNK_BYTES = 1 << 17  # where many sites send and fetch at once
OLDEST, NEWEST = 1, 1  # versions of the protocol that this Atoll speaks


class Place(NamedTuple):
    """Which work is meant: with the job's name, what makes an answer idempotent."""

    round: int
    client: ClientId
    work: str


class Blob(NamedTuple):
    """Bytes by their content: nobody can be given other ones under this name."""

    digest: str  # BLAKE3 in hexadecimal
    size_bytes: int


class Credentials(NamedTuple):
    """Who an end is, and whom it believes: PEM, as `atoll.identity` keeps them."""

    key: bytes
    certificate: bytes  # with the chain up to, and without, the authority
    authority: bytes  # the pinned certificate authorities of the other end


class Limits(NamedTuple):
    """What an end takes from the other one."""

    blob_bytes: int = 1 << 36  # of one tree or update
    free_bytes: int = 1 << 28  # that a transfer must leave on the disk
    stall_s: float = 60.0  # in which a transfer must move on, or the call ends and is made again
    retry_s: float = 0.2  # before a site calls again, doubled each time up to 15 s
    ping_s: float = 10.0  # between signs of life on an idle session; three without an answer end it


Doing = Literal["offline", "waiting", "fetching", "training", "pushing", "answered", "idle"]


class Progress(NamedTuple):
    """What one client is at."""

    doing: Doing
    done: int = 0  # bytes of a transfer, steps of a training
    total: int = 0  # 0: not known
    since_s: float = 0.0  # seconds since it began to do this
    silent_s: float = 0.0  # seconds since anything of this was last seen to move
    place: Place | None = None
    text: str = ""  # one sentence for a person: why a site refuses, or what went wrong last


class Consent(NamedTuple):
    """What a site says to an invitation."""

    accepted: bool
    reason: str = ""  # of a refusal, for a person
    about: bytes = b""  # what the site tells of itself, as both ends of the layer above understand it


class Presence(NamedTuple):
    """One site of a job, as the coordinator sees it."""

    clients: tuple[ClientId, ...]
    online: bool
    silent_s: float | None  # since it was last heard, or went; None: it has not called since the coordinator began
    consent: Consent | None  # to the invitation, in its present session; of a site that is away, in its last


class Invited(NamedTuple):
    """Coordinator to site: take part in this job. Comes again at every reconnection, and when the brief changes."""

    job: str
    clients: tuple[ClientId, ...]  # those that this site speaks for
    brief: bytes  # as the layer above wrote it, such as the checked job file


class Offered(NamedTuple):
    """Coordinator to site: an assignment, its tree fetched and checked. It comes once, however often the line is cut."""

    job: str
    assignment: Assignment


class Acknowledged(NamedTuple):
    """Coordinator to site: this answer is in the coordinator's log; commit the client memory that belongs to it."""

    job: str
    place: Place


class Refused(NamedTuple):
    """Coordinator to site: this answer is not wanted; drop the client memory that belongs to it."""

    job: str
    place: Place


class Cancelled(NamedTuple):
    """Coordinator to site: stop this work, in whatever state it is, and drop the client memory that belongs to it."""

    job: str
    round: int
    work: str


class Closed(NamedTuple):
    """Coordinator to site: the job has ended here; nothing more of it is wanted, unless it is invited to again."""

    job: str
    failed: str = ""  # why, where it has not come to its end


SiteEvent: TypeAlias = Invited | Offered | Acknowledged | Refused | Cancelled | Closed


def chunk_size(most_bytes: int) -> int:
    """The largest power of two that is no more than `most_bytes`, among those that a chunk may have.

    >>> [chunk_size(most_bytes) for most_bytes in (0, 300_000, 1 << 40)] == [LEAST_CHUNK_BYTES, 1 << 18, CHUNK_BYTES]
    True
    """
    return 1 << min(max(most_bytes, LEAST_CHUNK_BYTES), CHUNK_BYTES).bit_length() - 1


def place_of(x: Assignment | Answer) -> Place:
    """The place of an assignment, an update or a failure."""
    return Place(x.round, x.client, x.work)


def key_of(tree: Blob, seed: int) -> str:
    """What an assignment asks for, so that an answer made before a restart is taken only for the same question.

    >>> key_of(Blob("ab", 2), 7) == key_of(Blob("ab", 2), 8)
    False
    """
    return hashlib.sha256(f"{tree.digest} {tree.size_bytes} {seed}".encode()).hexdigest()
