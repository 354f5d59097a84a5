from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from atoll.cli.main import app
from atoll.cli.pki import duration
from atoll.errors import ConfigError
from atoll.identity.authority import load, pem
from atoll.identity.credentials import accept, prepare
from atoll.identity.enrolment import enrol
from atoll.identity.tokens import ticket


def say(*words: str, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "ATOLL_PKI": "pki", **environment}).invoke(app, ["pki", *words])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    done = say("init", "pki", "--name", "trial.example", "--host", "localhost", "--host", "192.0.2.7")
    assert done.exit_code == 0, done.output
    assert load(Path("pki")).sha256 in done.output
    return tmp_path


def shown(output: str) -> str:
    """The token as it is to be sent."""
    token = re.search(r"--token (\S+)", output)
    assert token is not None
    return token[1]


def test_from_nothing_to_a_site_and_back(here: Path) -> None:
    done = say("token", "hospital-a", "--expires", "7d")
    assert done.exit_code == 0, done.output
    given = ticket(shown(done.output))
    assert given.name == "hospital-a"
    assert "token not used" in say("list").output

    authority, site = load(Path("pki")), Path("site")
    made = enrol(authority, given.token, prepare(site, "hospital-a"))
    held = accept(site, "hospital-a", pem(made), authority.ca_pem, sha256=given.sha256)
    listed = say("list").output
    assert "token not used" not in listed
    assert re.search(rf"hospital-a +site +good +\S+ \S+ +{held.who.serial}", listed)

    done = say("revoke", "hospital-a")
    assert done.exit_code == 0
    assert f"serial {held.who.serial}" in done.output
    assert re.search(r"hospital-a +site +revoked", say("list").output)
    assert held.who.serial in authority.trust().revoked()


def test_over_a_port(here: Path) -> None:
    """The three commands of docs/identities.md, the one that listens in a process of its own."""
    program = [sys.executable, "-c", "from atoll.cli.main import app; app()", "pki", "listen", "127.0.0.1:0", "--pki", "near"]
    assert say("init", "near", "--name", "trial.example", "--host", "127.0.0.1").exit_code == 0
    token = shown(say("token", "hospital-a", "--pki", "near").output)
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as listening:
        try:
            assert listening.stdout is not None
            address = listening.stdout.readline().removeprefix("listening on ").strip()
            done = say("enrol", address, ATOLL_TOKEN=token)
            assert done.exit_code == 0, done.output
            assert "hospital-a (site): identity, good until" in done.output
            before = Path("identity/identity.pem").read_bytes()
            assert say("enrol", address, "--token", token).exit_code == 0  # again: it is there already
            done = say("renew", address)
            assert done.exit_code == 0, done.output
            assert Path("identity/identity.pem").read_bytes() != before
            done = say("enrol", address, "--token", token, "--identity", "again")
            assert done.exit_code == 1
            assert "was used" in done.output
            done = say("enrol", address, "--token", token[:-64] + "0" * 64, "--identity", "again")
            assert done.exit_code == 1
            assert "go no further" in done.output
        finally:
            listening.kill()
    done = say("renew", address)
    assert done.exit_code == 1
    assert "gives no certificate" in done.output


def test_without_the_package_the_extra_is_named(here: Path) -> None:
    program = "import sys; sys.modules['cryptography'] = None; from atoll.cli.main import app; app()"
    for words in (["list"], ["token", "x"], ["revoke", "x"], ["renew"], ["init", "new", "--name", "a", "--host", "b"]):
        done = subprocess.run([sys.executable, "-c", program, "pki", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "pip install 'atoll[net]'" in done.stderr


def test_no_private_key_and_no_old_token_is_ever_printed(here: Path) -> None:
    token = shown(say("token", "hospital-a").output)
    said = "".join(say(*words).output for words in (["list"], ["renew"], ["revoke", "hospital-a"], ["list"], ["token", "b"]))
    assert ticket(token).token.partition(".")[2] not in said
    for name in ("ca.key", "coordinator.pem"):
        secret = (here / "pki" / name).read_text().splitlines()[1]
        assert secret not in said
    assert "PRIVATE" not in said


def test_renew(here: Path) -> None:
    before = (here / "pki" / "coordinator.pem").read_bytes()
    done = say("renew")
    assert done.exit_code == 0, done.output
    assert (here / "pki" / "coordinator.pem").read_bytes() != before
    assert len(re.findall(r"coordinator +coordinator +good", say("list").output)) == 2


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["init", "pki", "--name", "trial.example", "--host", "localhost"], 1, "name a new one"),
        (["init", "new", "--name", "trial.example"], 2, "--host"),
        (["init", "new", "--name", "trial.example", "--host", "*"], 2, "DNS name"),
        (["init", "new", "--name", "../x", "--host", "localhost"], 2, "domain"),
        (["token", "../x"], 2, "can't be used"),
        (["token", "x", "--role", "root"], 2, "researcher"),
        (["token", "x", "--role", "coordinator"], 2, "researcher"),
        (["token", "x", "--expires", "0h"], 2, "24h"),
        (["token", "x", "--expires", "soon"], 2, "24h"),
        (["token", "x", "--pki", "absent"], 1, "atoll pki init"),
        (["list", "--pki", "absent"], 1, "atoll pki init"),
        (["revoke", "nobody"], 1, "atoll pki list"),
        (["revoke", "coordinator"], 1, "new authority"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(here: Path, words: list[str], code: int, why: str) -> None:
    done = say(*words)
    assert done.exit_code == code, done.output
    assert why in done.output
    assert "Traceback" not in done.output
    assert not Path("new").exists()


def test_an_exposed_key_is_not_used(here: Path) -> None:
    os.chmod("pki/ca.key", 0o644)
    done = say("token", "hospital-a")
    assert done.exit_code == 1
    assert "chmod 600" in done.output


def test_the_folder_by_option_or_by_environment(here: Path) -> None:
    assert say("list", ATOLL_PKI=str(here / "absent")).exit_code == 1
    assert say("list", "--pki", "pki", ATOLL_PKI=str(here / "absent")).exit_code == 0
    assert say("list", ATOLL_PKI="").exit_code == 0  # ./pki


def test_times() -> None:
    assert [duration(text) for text in ("30m", "24h", "7d")] == [timedelta(minutes=30), timedelta(days=1), timedelta(days=7)]
    for text in ("", "24", "-1h", "1.5h", "24h ", "1w", "999999d", "२h"):
        with pytest.raises(ConfigError):
            duration(text)
