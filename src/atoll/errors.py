"""Every error that Atoll raises on purpose: one tree, so that a caller can catch as widely as it likes.

A message names the value, the rule and the mend, in one or two sentences. The command line prints the message
alone; anything outside this tree is a defect of Atoll.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AtollError(Exception):
    """The root: `except AtollError` catches all that Atoll says on purpose."""


class ConfigError(AtollError, ValueError):
    """A setting or an argument breaks a rule; raised while the federation is built."""


class JobError(ConfigError):
    """A job file has problems; `problems` holds one sentence each, with its place, in the file's order."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class UnknownName(ConfigError):
    """A name that is in no catalog. The message offers the nearest right one."""


class TreeError(AtollError, ValueError):
    """Two trees disagree in names, shapes or dtypes."""


class FrameError(AtollError, ValueError):
    """Bytes from a network are no frame, are damaged, or announce what is not allowed here; or a value no frame carries."""


class DataError(AtollError, ValueError):
    """Data that can't be read, is empty, or is not what the task wants."""


class FetchError(DataError):
    """A data set or model could not be fetched, or is not the one that was pinned."""


class MissingExtra(AtollError, ImportError):
    """An optional package is absent; the message names the extra that brings it."""


class RoundError(AtollError, RuntimeError):
    """A round could not be closed: too few clients answered, or one failed and the policy says stop."""


class StoreError(AtollError, OSError):
    """The runs database or a run's folder can't be read or written."""


class RemoteError(AtollError, ConnectionError):
    """The other end of a deployment can't be reached, refuses, or says what it may not."""


class VersionError(AtollError):
    """A file was written by a newer Atoll."""


class IdentityError(AtollError):
    """A certificate, key, token or name that does not prove who somebody is, or a folder of them that can't be used."""


class NameRefused(IdentityError, ConfigError):
    """A name, domain, host or role that no certificate may carry."""


class TokenRefused(IdentityError):
    """An enrolment token that is unknown, used or expired."""


class RequestRefused(IdentityError):
    """A request for a certificate that is malformed, weak, or asks for more than it may."""


class ForeignCertificate(IdentityError):
    """A certificate of another authority, or one that this authority did not make for its holder to speak with."""


class CertificateExpired(IdentityError):
    """A certificate whose time is over."""


class CertificateNotYetValid(IdentityError):
    """A certificate whose time has not begun: one of two clocks is wrong."""


class CertificateRevoked(IdentityError):
    """A certificate that its authority has taken back."""


class WrongRole(IdentityError):
    """A certificate that is good, of somebody who may not do this."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is not among `known`, with the nearest right one.

    >>> raise unknown("algorithm", "fedavgg", ["fedavg", "scaffold"])
    Traceback (most recent call last):
    atoll.errors.UnknownName: no algorithm is called 'fedavgg'; did you mean 'fedavg'? Known: fedavg, scaffold.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UnknownName(f"no {kind} is called {name!r}{hint} Known: {', '.join(names)}.")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtra:
    """The error for an optional package that is absent.

    >>> raise missing_extra("peft", "llm", "adapters")
    Traceback (most recent call last):
    atoll.errors.MissingExtra: adapters need the package 'peft': pip install 'atoll[llm]'
    """
    return MissingExtra(f"{purpose} need the package {package!r}: pip install 'atoll[{extra}]'")
