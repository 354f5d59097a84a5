"""`atoll join --token` up to where it would join; tests/deploy/rules/test_policy_machines.py joins."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from atoll.cli.main import app
from atoll.deploy.enrol import bought, listening
from atoll.identity.authority import Authority, create
from atoll.identity.tokens import Ticket, invite
from atoll.remote.enrolment import Enrolment


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.chdir(tmp_path)
    return create(tmp_path / "pki", "trial.example", ["127.0.0.1"])


@pytest.fixture
def port(authority: Authority) -> Iterator[Enrolment]:
    opened = listening(authority.folder, "127.0.0.1:0")
    yield opened
    opened.close()


def join(*words: str, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", **environment}).invoke(app, ["join", "127.0.0.1:1", *words])


def test_tokens_that_buy_nothing(authority: Authority, port: Enrolment) -> None:
    hour, then = timedelta(hours=1), datetime.now(UTC) - timedelta(hours=2)
    used = str(Ticket("north", invite(authority, "north"), authority.sha256))
    late = str(Ticket("south", invite(authority, "south", life=hour, now=then), authority.sha256))
    assert bought(port.address, Path("elsewhere"), used)
    for token, why in ((used, "the token for north was used at "), (late, "the token for south expired at ")):
        said = join("--enrol", port.address, "--identity", "own", ATOLL_TOKEN=token)
        assert said.exit_code == 1
        (line,) = said.output.splitlines()
        assert line.startswith(f"error: {why}")
        assert "ask for a new one" in line
    said = join("--enrol", port.address, "--token", "hospital-a")
    assert said.exit_code == 1
    assert (
        said.output == "error: this is no token as `atoll pki token` prints it; copy it whole, from the name to the last digit\n"
    )
    said = join("--enrol", "nowhere", "--token", used, "--identity", "own")
    assert said.exit_code == 2
    assert "write HOST:PORT" in said.output


def test_without_a_token_an_identity_is_needed(authority: Authority) -> None:
    said = join()
    assert said.exit_code == 2
    assert "give --identity FOLDER or --insecure-loopback" in said.output
    said = CliRunner().invoke(app, ["serve", "absent.toml", "--insecure-loopback", "--enrol", "127.0.0.1:0"])
    assert said.exit_code == 2
