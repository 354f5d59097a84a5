"""A job's signature travels with it: what a site computes is what a person signed, whatever the coordinator would like."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

import atoll.deploy.coordinator
from atoll.cli.main import app
from atoll.deploy.brief import brief_of, job_of, said_by
from atoll.deploy.rules.judge import text_of
from atoll.deploy.rules.signatures import kept_signature, load_key, make_key, public_text, sign_job
from atoll.errors import ConfigError
from atoll.job.text import load, parse
from tests.deploy.real import JOB, Run, insecure, logged

KEY = Ed25519PrivateKey.generate()
POLICY = f'approval = "automatic"\n[code]\nkeys = ["{public_text(KEY)}"]\nsigned_jobs = true\n'
SIGNATURE = sign_job(KEY, text_of(parse(JOB).values))


def test_a_signed_job_is_taken_part_in(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with insecure(tmp_path, "north", "south") as (hub, links):
        for site in links:
            run.join(site, links[site], POLICY)
        outcome = run.carried_out(hub, signature=SIGNATURE)
    assert outcome.result.metrics is not None
    for site in ("north", "south"):
        assert [record["event"] for record in logged(tmp_path / site, "admitted", "refused")] == ["admitted"]


@pytest.mark.parametrize(
    ("signature", "change"),
    [(b"", {}), (SIGNATURE, {"rounds": 3}), (SIGNATURE, {"local": {"name": "sgd", "lr": 0.2}}), (SIGNATURE[:-1] + b"x", {})],
    ids=["unsigned", "one more round", "another rate", "another signature"],
)
def test_what_was_not_signed_is_refused_and_the_round_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signature: bytes, change: dict[str, Any]
) -> None:
    """The coordinator sends another job than it was given; the site without a policy goes on alone."""

    def altered(values: Mapping[str, Any], population: Iterable[str], given: bytes) -> bytes:
        return brief_of({**values, **change}, population, given)

    monkeypatch.setattr(atoll.deploy.coordinator, "brief_of", altered)
    run, consents = Run(tmp_path), list[Any]()
    with insecure(tmp_path, "north", "south") as (hub, links):
        run.join("north", links["north"], POLICY)
        run.join("south", links["south"])

        def look(rounds: int, _: Any) -> None:
            (id,) = hub._floor.desks
            consents.append(hub.consents(id)["north"])

        outcome = run.carried_out(hub, patience_s=1.0, signature=signature, each_round=look)
    assert len(consents) == 2  # both rounds ended, of those who take part
    for consent in consents:
        assert not consent.accepted
        assert consent.reason.startswith("[code] signed_jobs: this site takes signed jobs only, and ")
    (record,) = logged(tmp_path / "north", "refused")
    assert record["text"] == consents[0].reason
    assert {each["event"] for each in logged(tmp_path / "north")} == {"opened", "refused"}  # no assignment came, nothing left
    assert outcome.model


def test_what_is_signed_is_what_is_built() -> None:
    """Order, spaces and the population are not signed; every value is, as it comes out of the brief's bytes."""
    values = parse(JOB).values
    brief = brief_of(dict(reversed(list(values.items()))), ["client-0"], SIGNATURE)
    said, signature = said_by(brief)
    assert signature == SIGNATURE
    assert text_of(said) == text_of(values)
    assert job_of(brief)[0] == job_of(brief_of(values, ["client-0"]))[0]
    twice = brief.replace(b'"rounds": 2', b'"rounds": 2, "rounds": 9')
    assert said_by(twice)[0]["rounds"] == job_of(twice)[0].rounds == 9
    for odd in ("xyz", 7, None, [1]):
        with pytest.raises(ConfigError, match="signature"):
            said_by(json.dumps({"job": {}, "population": [], "signature": odd}).encode())


def test_a_signature_beside_a_job(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    key, said = (
        make_key(tmp_path / "me.key"),
        CliRunner().invoke(app, ["job", "sign", str(job), "--key", str(tmp_path / "me.key")]),
    )
    assert said.exit_code == 0, said.output
    assert said.output == f"{job}.sig: signed by {key}\n"
    found = kept_signature(job, text_of(load(job).values))
    assert found == sign_job(load_key(tmp_path / "me.key"), text_of(parse(JOB).values))
    job.write_text("# a comment\n" + JOB.replace("rounds = 2", "rounds=2"))
    assert kept_signature(job, text_of(load(job).values)) == found
    job.write_text(JOB.replace("rounds = 2", "rounds = 3"))
    with pytest.raises(ConfigError, match="was changed after it was signed"):
        kept_signature(job, text_of(load(job).values))
    refused = CliRunner().invoke(app, ["serve", str(job), "--insecure-loopback", "--runs", str(tmp_path / "runs")])
    assert refused.exit_code == 2
    assert "was changed after it was signed" in refused.output
    for odd in (b"", b"{}", b"\xff", b'{"key": "x", "signature": "00"}', b'{"key": 1, "signature": 2}'):
        job.with_name("job.toml.sig").write_bytes(odd)
        with pytest.raises(ConfigError, match="is no signature"):
            kept_signature(job, "{}")
    job.with_name("job.toml.sig").unlink()
    assert kept_signature(job, "{}") == b""


def test_a_key_is_made_once(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["job", "key", str(tmp_path / "me.key")])
    assert made.output.strip() == public_text(load_key(tmp_path / "me.key"))
    assert (tmp_path / "me.key").stat().st_mode & 0o777 == 0o600
    again = CliRunner().invoke(app, ["job", "key", str(tmp_path / "me.key")])
    assert again.exit_code == 2
    assert "can't write the key" in again.output
