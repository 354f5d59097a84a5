"""`atoll site` and `atoll audit` as a person at a site, and an auditor, use them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from atoll.cli.main import app
from atoll.deploy.rules.approvals import Consents
from atoll.deploy.rules.gate import Gate
from atoll.deploy.rules.judge import Offer
from atoll.deploy.rules.permit import Declared
from atoll.deploy.rules.policy import read_policy
from atoll.job import templates
from atoll.job.check import check
from atoll.job.text import parse
from atoll.types import ClientId, Update

COMMANDS = [
    *(f"site {each}" for each in ("jobs", "approve", "deny", "digest", "policy check")),
    *(f"audit {each}" for each in ("verify", "show", "head", "key")),
]


def say(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "220", "TERM": "dumb"}).invoke(app, [str(word) for word in words])


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A site's folder, where one job waits."""
    document = parse(templates.named("hospitals", "hearts"))
    gate(tmp_path).admit(Offer(check(document), document.values, sender="university"))
    return tmp_path


def gate(folder: Path) -> Gate:
    return Gate(folder, read_policy("site_policy = 1\n[jobs]\nrounds = 19"), "university")


def left(folder: Path, rounds: int) -> None:
    here = gate(folder)
    for round in range(rounds):
        update = Update(round, ClientId("north"), "train", {"w": torch.ones(4)}, 8.0, {"loss": 0.5})
        here.leave("hearts", update, Declared("train", update.tree))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    assert f"atoll {command}" in say(*command.split(), "--help").output.split("Options")[0].split("Example", 1)[1]


def test_jobs_are_listed_with_what_the_policy_says(asked: Path) -> None:
    shown = say("site", "jobs", "--folder", asked)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"hearts +[0-9a-f]{12} +waiting .*\[jobs\] rounds: rounds = 20; this site allows 19", shown.output)
    assert "nobody has asked the site" in say("site", "jobs", "--folder", asked / "other").output


def test_consent_is_given_and_withdrawn_and_logged(asked: Path) -> None:
    given = say("site", "approve", "hearts", "--folder", asked, "--by", "anna")
    assert given.exit_code == 0, given.output
    assert "hearts" in given.output
    assert "but the policy said, when it was last asked: [jobs] rounds" in given.output
    known = Consents(asked).find("hearts")
    assert (known.status, known.by) == ("approved", "anna")
    assert say("site", "deny", known.digest[:10], "--folder", asked, "--why", "no longer").exit_code == 0
    assert Consents(asked).find("hearts").status == "denied"
    shown = say("audit", "show", asked / "audit.jsonl").output
    assert re.search(rf"approved +job=hearts digest={known.digest} .*by=anna", shown)
    assert "why='no longer'" in shown


def test_a_job_that_nobody_asked_for_is_told_with_the_nearest(asked: Path) -> None:
    wrong = say("site", "approve", "heart", "--folder", asked)
    assert wrong.exit_code == 2
    assert "no job is called 'heart'; did you mean 'hearts'?" in wrong.output


def test_a_policy_is_explained_judged_and_its_problems_have_lines(tmp_path: Path) -> None:
    policy, job = tmp_path / "policy.toml", tmp_path / "hearts.toml"
    job.write_text(templates.named("hospitals", "hearts"))
    policy.write_text('site_policy = 1\n[jobs]\nalgorithms = ["fedavg"]\n')
    assert "Algorithms: fedavg." in say("site", "policy", "check", policy).output
    judged = say("site", "policy", "check", policy, "--job", job)
    assert judged.exit_code == 2
    assert "[jobs] algorithms: the job's algorithm is 'scaffold'" in judged.output
    policy.write_text("site_policy = 1\n")
    assert "has nothing against it" in say("site", "policy", "check", policy, "--job", job).output
    policy.write_text("site_policy = 1\n\n[leaves]\nmetric = []\n")
    wrong = say("site", "policy", "check", policy)
    assert wrong.exit_code == 2
    assert "policy.toml:4: [leaves] there is no key 'metric'; did you mean 'metrics'?" in wrong.output


def test_the_digest_of_a_job_file_is_the_one_that_consent_is_kept_by(asked: Path, tmp_path: Path) -> None:
    job = tmp_path / "again.toml"
    job.write_text("# another comment\n" + templates.named("hospitals", "hearts"))
    assert say("site", "digest", job).output.strip() == Consents(asked).find("hearts").digest


def test_an_auditor_finds_a_log_that_was_cut_short(asked: Path) -> None:
    log, kept = asked / "audit.jsonl", asked / "kept.json"
    key = say("audit", "key", asked).output.strip()
    assert os.stat(asked / "audit.key").st_mode & 0o077 == 0
    left(asked, 3)
    kept.write_text(say("audit", "head", log).output)
    left(asked, 5)
    whole = say("audit", "verify", log, "--head", kept, "--key", key)
    assert whole.exit_code == 0, whole.output
    assert "7 records, each following the one before it" in whole.output
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]))
    last = json.loads(lines[3])
    head = json.loads(kept.read_text()) | {"seq": 3, "hash": last["hash"], "size_bytes": log.stat().st_size}
    (asked / "audit.jsonl.head").write_text(json.dumps(head))  # by somebody without the key
    assert say("audit", "verify", log).exit_code == 0
    found = say("audit", "verify", log, "--head", kept, "--key", key)
    assert found.exit_code == 1
    assert "the log was cut short: record 4 is missing at its end, by the head at record 4" in found.output
    assert "the head at record 3 is signed by none of the keys" in found.output


def test_a_changed_line_is_named_with_its_number(asked: Path) -> None:
    left(asked, 3)
    log = asked / "audit.jsonl"
    log.write_text(log.read_text().replace('"round":1', '"round":7'))
    found = say("audit", "verify", log)
    assert found.exit_code == 1
    assert "audit.jsonl:4: record 3 was changed, or is no record" in found.output
    assert say("audit", "verify", log, "--key", "short").exit_code == 2
    assert say("audit", "verify", log, "--head", asked / "absent").exit_code == 2


def test_show_adds_up_what_left(asked: Path) -> None:
    left(asked, 2)
    shown = say("audit", "show", asked / "audit.jsonl", "--event", "left", "--job", "hearts")
    sizes = [int(size) for size in re.findall(r"bytes=(\d+)", shown.output)]
    assert len(sizes) == 2
    assert f"{sum(sizes)} bytes left the site in these records" in shown.output
    assert "first=" not in shown.output
    assert "first=[w float32 [4]]" in say("audit", "show", asked / "audit.jsonl", "--wide").output
