"""Who may look at what: on the coordinator's machine, and over its port by certificate."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.deploy.operations.look import QUESTION, answer_of, answering, look, question_of
from atoll.deploy.operations.status import FILE, ClientState, Live, Rules, SiteState, Status, to_json
from atoll.deploy.trust import as_coordinator, as_site, who_asks
from atoll.errors import ConfigError, IdentityError, RemoteError, UnknownName, WrongRole
from atoll.identity import credentials, enrolment, revocation, tokens
from atoll.identity.authority import Authority, create, pem
from atoll.remote.asking import ask
from atoll.remote.hub import Hub
from atoll.store.runs import Store
from atoll.types import Event
from tests.remote.ends import QUICK

SITES = (SiteState("north", True, 5.0, "accepted"), SiteState("south", False))
CLIENTS = (ClientState("a", "north", "training", 1, 2, 3.0, 4.0, 1, "train"), ClientState("b", "south"))


def served(folder: Path, name: str = "hearts", sites: tuple[SiteState, ...] = SITES) -> str:
    """A run as a coordinator keeps it, left by a kill; returns its id."""
    with Store(folder) as store, contextlib.closing(store.create(name, {}, 0, 5)) as run:
        run.start()
        run.sink.emit(Event("failure", 0, "train", CLIENTS[0].client, {}, "error: no column"))  # type: ignore[arg-type]
        run.sink.emit(Event("failure", 0, "train", CLIENTS[1].client, {}, "lost: away"))  # type: ignore[arg-type]
        run.sink.flush()
        live = Live(time.time(), 0.0, "training", False, 1, 1.0, 2.0, "train", Rules(), sites, CLIENTS)
        (run.folder / FILE).write_text(to_json(live))
        return run.id


def test_a_run_is_found_by_its_jobs_name_by_its_id_and_by_the_beginning_of_it(tmp_path: Path) -> None:
    first, second = served(tmp_path), served(tmp_path)
    other = served(tmp_path, "lungs")
    with Store(tmp_path) as store:
        assert [each.run for each in look(store, "hearts")] == [second]  # the newest of that name
        assert [each.run for each in look(store, first)] == [first]
        assert [each.run for each in look(store, other[:7])] == [other]
        assert [each.run for each in look(store, "last")] == [other]
        assert [each.run for each in look(store, None)] == [other, second, first]
        assert (look(store, first)[0].state, look(store, first)[0].failures[1].text) == ("interrupted", "lost: away")
        with pytest.raises(UnknownName, match="heartz"):
            look(store, "heartz")


def test_a_site_is_told_of_its_own_part_and_of_no_other_job(tmp_path: Path) -> None:
    served(tmp_path)
    served(tmp_path, "lungs", SITES[1:])
    answer = answering(lambda: Store(tmp_path))
    (found,) = answer_of(answer("north", QUESTION, question_of("hearts")))
    assert found.live is not None
    assert [each.site for each in found.live.sites] == ["north"]
    assert [(each.client, each.text) for each in found.failures] == [("a", "error: no column")]
    assert [each.name for each in answer_of(answer("north", QUESTION, question_of(None)))] == ["hearts"]
    refusals = []
    for which in ("lungs", "nothing", "l"):
        with pytest.raises(UnknownName, match=f"the site north has no part in a job called '{which}'") as refused:
            answer("north", QUESTION, question_of(which))
        refusals.append(str(refused.value).replace(repr(which), ""))
    assert len(set(refusals)) == 1  # a job of others and one that is not there look the same
    assert {each.name for each in answer_of(answer("auditor/eve", QUESTION, question_of(None)))} == {"hearts", "lungs"}


def test_no_other_role_and_no_other_question(tmp_path: Path) -> None:
    answer = answering(lambda: Store(tmp_path))
    with pytest.raises(WrongRole, match="eve is a janitor"):
        answer("janitor/eve", QUESTION, question_of(None))
    with pytest.raises(ConfigError, match="no question called 'secrets'"):
        answer("admin/eve", "secrets", b"")


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"{}", b"[]", b'{"job": 1, "logs": 0}', b'{"job": null, "logs": true}', b"[" * 99999]
)
def test_a_question_that_makes_no_sense(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(ConfigError, match="makes no sense"):
        answering(lambda: Store(tmp_path))("admin/eve", QUESTION, body)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create(tmp_path / "pki", "trial.example", ["localhost"])


@pytest.fixture
def hub(authority: Authority, tmp_path: Path) -> Iterator[Hub]:
    served(tmp_path / "runs")
    ours, who = as_coordinator(tmp_path / "pki", False)
    asked = answering(lambda: Store(tmp_path / "runs"))
    made = Hub("localhost:0", ours, tmp_path / "hub", who=who, ask=asked, who_asks=who_asks(tmp_path / "pki"), limits=QUICK)
    yield made
    made.stop(0.0)


def asked(authority: Authority, hub: Hub, folder: Path, name: str, role: str, job: str | None = "hearts") -> list[Status]:
    """What somebody of that name and role is answered."""
    if not folder.exists():
        made = enrolment.enrol(authority, tokens.invite(authority, name, role=role), credentials.prepare(folder, name))
        credentials.accept(folder, name, pem(made), authority.ca_pem, sha256=authority.sha256)
    ours, _ = as_site(folder, None, False)
    return answer_of(ask(hub.address, ours, QUESTION, question_of(job), timeout_s=20.0))


def test_over_the_port_by_role(authority: Authority, hub: Hub, tmp_path: Path) -> None:
    for role in ("researcher", "auditor", "admin"):
        (found,) = asked(authority, hub, tmp_path / role, f"dr-{role}", role)
        assert found.live is not None
        assert len(found.live.sites) == 2
    (found,) = asked(authority, hub, tmp_path / "n", "north", "site")
    assert found.live is not None
    assert [each.site for each in found.live.sites] == ["north"]
    with pytest.raises(UnknownName, match="the site west has no part in a job called 'hearts'"):
        asked(authority, hub, tmp_path / "w", "west", "site")
    revocation.revoke(authority, "dr-auditor")
    with pytest.raises(IdentityError, match="revoked"):
        asked(authority, hub, tmp_path / "auditor", "dr-auditor", "auditor")


def test_strangers_are_not_heard(authority: Authority, hub: Hub, tmp_path: Path) -> None:
    other = create(tmp_path / "other", "trial.example", ["localhost"])
    with pytest.raises(RemoteError, match="does not answer"):
        asked(other, hub, tmp_path / "s", "eve", "admin")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(RemoteError, match="does not answer"):
            ask(f"127.0.0.1:{free.getsockname()[1]}", None, QUESTION, b"", insecure=True, timeout_s=20.0)


def test_a_researcher_may_ask_and_not_pose_as_a_site(authority: Authority, hub: Hub, tmp_path: Path) -> None:
    from atoll.remote.link import Link
    from tests.remote.ends import until

    asked(authority, hub, tmp_path / "r", "north", "researcher")
    ours, _ = as_site(tmp_path / "r", None, False)
    link = Link(hub.address, ours, "north", tmp_path / "link", limits=QUICK)
    try:
        until(lambda: "researcher" in link.trouble, "it was let in")
        assert hub.sites() == {}
    finally:
        link.close()


def test_an_answer_of_another_release_says_so() -> None:
    from atoll.errors import StoreError

    with pytest.raises(StoreError, match="use one release of atoll at both ends"):
        answer_of(json.dumps({"found": [{}]}).encode())
