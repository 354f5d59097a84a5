"""The policy file: what it may say, and every problem with its line."""

from __future__ import annotations

from datetime import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.deploy.rules.explain import sentences
from atoll.deploy.rules.policy import SitePolicy, is_open, load_policy, read_policy
from atoll.errors import ConfigError, JobError, VersionError


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(JobError) as raised:
        read_policy(text)
    return raised.value.problems


def test_an_empty_policy_asks_a_person_and_keeps_words_at_home() -> None:
    policy = read_policy("site_policy = 1")
    assert policy.approval == "manual"
    assert not policy.leaves.reasons
    assert not policy.leaves.logs
    assert policy.code.keys == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("approval = 'manual'", "site-policy.toml:1: site_policy is missing: write `site_policy = 1` first"),
        ("site_policy = true", "site-policy.toml:1: site_policy = true: must be a whole number"),
        ("site_policy = 0", "site-policy.toml:1: site_policy = 0: must be 1, the format of this file"),
        (
            "site_policy = 1\napproval = 'never'",
            "site-policy.toml:2: approval = \"never\": input should be 'automatic' or 'manual'",
        ),
        ("site_policy = 1\n[job]", "site-policy.toml:2: there is no section [job]; did you mean 'jobs'?"),
        (
            "site_policy = 1\n[leaves]\n\nround_mb = 3.0",
            "site-policy.toml:4: [leaves] there is no key 'round_mb'; did you mean 'round_mib'?",
        ),
        ("site_policy = 1\n[leaves]\nround_mib = 0", "site-policy.toml:3: [leaves] round_mib = 0: must be above 0"),
        ("site_policy = 1\n[leaves]\nmetrics = 'loss'", 'site-policy.toml:3: [leaves] metrics = "loss": must be a list'),
        (
            "site_policy = 1\n[resources]\nhours = '8-17'",
            'site-policy.toml:3: [resources] hours = "8-17": must be two times of the day, such as "20:00-06:00"',
        ),
        (
            "site_policy = 1\n[jobs]\nsha256 = ['4F']",
            'site-policy.toml:3: [jobs] sha256 = "4F": must be a SHA-256, 64 digits of 0-9 and a-f, '
            "as `atoll site digest JOB` prints it",
        ),
        (
            "site_policy = 1\n[code]\nkeys = ['c2hvcnQ=']",
            'site-policy.toml:3: [code] keys = "c2hvcnQ=": must be an Ed25519 public key, its 32 bytes in base64',
        ),
        (
            "site_policy = 1\n[jobs]\nrequire_transforms = [{name = 'clip', must = 1}]",
            "site-policy.toml:3: [jobs] there is no key 'must'; did you mean 'most'?",
        ),
        (
            "site_policy = 1\n[jobs]\ntransforms = ['int8']\nrequire_transforms = ['clip']",
            "site-policy.toml:3: [jobs] transforms: must have 'clip' too, which require_transforms asks for",
        ),
    ],
)
def test_a_problem_has_its_line_the_value_and_the_mend(text: str, told: str) -> None:
    assert problems(text) == (told,)


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    found = problems("site_policy = 1\n[jobs]\nrounds = 0\n[resources]\nthreads = 'two'\n")
    assert [each.partition(": ")[0] for each in found] == ["site-policy.toml:3", "site-policy.toml:5"]


def test_a_name_that_no_catalog_has_is_told_with_the_nearest() -> None:
    (told,) = problems("site_policy = 1\n[jobs]\n\nalgorithms = ['fedavgg']")
    assert told.startswith("site-policy.toml:4: [jobs] algorithms: no algorithm is called 'fedavgg'; did you mean 'fedavg'?")
    (told,) = problems("site_policy = 1\n[data]\nnames = ['heart_diseases']")
    assert "did you mean 'heart_disease'?" in told


def test_a_policy_of_a_newer_format_is_refused() -> None:
    with pytest.raises(VersionError, match=r"site-policy\.toml:1: the policy is of format 2: upgrade Atoll"):
        read_policy("site_policy = 2\nwhatever = 1")


def test_what_is_no_toml_and_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site-policy\.toml:2: not valid TOML"):
        read_policy("site_policy = 1\n[jobs\n")
    with pytest.raises(ConfigError, match="can't read the site policy"):
        load_policy(tmp_path / "absent.toml")


@given(st.times(), st.times(), st.times())
def test_the_hours_and_their_complement_share_the_day(begins: time, ends: time, now: time) -> None:
    begins, ends = (each.replace(second=0, microsecond=0) for each in (begins, ends))
    there, back = (f"{a:%H:%M}-{b:%H:%M}" for a, b in ((begins, ends), (ends, begins)))
    if begins != ends:
        assert is_open(there, now) != is_open(back, now)
    assert is_open(there, begins)


def test_every_key_of_a_policy_is_told_in_its_explanation() -> None:
    """A limit that the explanation does not mention would be a rule nobody can read."""
    plain = set(sentences(read_policy("site_policy = 1")))
    rules = {
        "jobs": {
            "names": ["odd-*"], "sha256": ["ab" * 32], "algorithms": ["fedavg"], "locals": ["sgd"], "transforms": ["int8"],
            "require_transforms": ["clip"], "rounds": 17,
        },
        "data": {"names": ["digits"], "folders": ["/odd"], "columns": ["odd"], "deny_columns": ["odd"]},
        "leaves": {
            "work": ["train"], "metrics": ["loss"], "round_mib": 3.0, "job_mib": 5.0, "example_counts": False, "reasons": True,
            "logs": True,
        },
        "privacy": {"required": True, "epsilon": 3.0, "delta": 0.25, "epsilon_in_all": 9.0, "delta_in_all": 0.5},
        "resources": {"threads": 3, "memory_gib": 7.0, "hours": "01:00-02:00", "jobs": 2},
        "code": {"keys": ["A" * 43 + "="], "signed_jobs": True},
    }  # fmt: skip
    for section, keys in rules.items():
        assert set(keys) == set(SitePolicy.model_fields[section].annotation.model_fields)
        for key, value in keys.items():
            given_ = SitePolicy.model_validate({"site_policy": 1, section: {key: value}})
            assert set(sentences(given_)) != plain, f"[{section}] {key} is not told"
    automatic = SitePolicy.model_validate({"site_policy": 1, "approval": "automatic"})
    assert set(sentences(automatic)) != plain
