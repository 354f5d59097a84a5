"""Decisions by hand: one job, and for each rule a policy that it keeps to and one that it breaks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.deploy.rules.judge import Offer, Usage, judge, refused_columns
from atoll.deploy.rules.policy import read_policy
from atoll.deploy.rules.signatures import public_text, sign_job
from atoll.job.check import check
from atoll.job.schema import Named
from atoll.job.text import parse

JOB = """
atoll = 1
name = "hearts-3"
rounds = 20
transforms = [{name = "clip", norm = 2.0}, "int8"]
[data]
name = "heart_disease"
[task]
name = "classification"
model = {name = "mlp", inputs = 30, outputs = 2}
[local]
name = "sgd"
lr = 0.1
[algorithm]
name = "fedavg"
[privacy]
epsilon = 4.0
delta = 1e-5
"""


def offer(*overrides: str, **other: Any) -> Offer:
    document = parse(JOB, overrides=overrides)
    return Offer(check(document), document.values, **other)


def rules(policy: str, offered: Offer | None = None, usage: Usage | None = None) -> list[str]:
    return [each.rule for each in judge(read_policy(f"site_policy = 1\n{policy}"), offered or offer(), usage or Usage())]


@pytest.mark.parametrize(
    ("section", "kept", "broken"),
    [
        ("jobs", 'names = ["hearts-*"]', 'names = ["lungs-*", "hearts"]'),
        ("jobs", f'sha256 = ["{offer().digest}"]', f'sha256 = ["{offer("rounds=19").digest}"]'),
        ("jobs", 'algorithms = ["fedavg", "scaffold"]', 'algorithms = ["scaffold"]'),
        ("jobs", 'locals = ["sgd"]', 'locals = ["adamw"]'),
        ("jobs", 'transforms = ["clip", "int8"]', 'transforms = ["clip"]'),
        ("jobs", 'require_transforms = ["clip"]', 'require_transforms = ["top_k"]'),
        (
            "jobs",
            'require_transforms = [{name = "clip", most = {norm = 2.0}}]',
            'require_transforms = [{name = "clip", most = {norm = 1.9}}]',
        ),
        (
            "jobs",
            'require_transforms = [{name = "int8", least = {block = 2}}]',  # which the job leaves to its default
            'require_transforms = [{name = "int8", least = {block = 1e9}}]',
        ),
        ("jobs", "rounds = 20", "rounds = 19"),
        ("data", 'names = ["heart_disease"]', "names = []"),
        ("privacy", "epsilon = 4.0", "epsilon = 3.9"),
        ("privacy", "delta = 1e-5", "delta = 1e-6"),
        ("privacy", "epsilon_in_all = 4.0", "epsilon_in_all = 3.0"),
        ("resources", "threads = 1", None),
        ("code", "signed_jobs = false", "signed_jobs = true"),
    ],
)
def test_a_rule_is_kept_or_broken(section: str, kept: str, broken: str | None) -> None:
    assert rules(f"[{section}]\n{kept}") == []
    if broken is not None:
        (rule,) = rules(f"[{section}]\n{broken}")
        assert rule == f"[{section}] {broken.partition(' =')[0]}"


def test_a_refusal_names_the_value_the_rule_and_the_mend() -> None:
    (refusal,) = judge(read_policy("site_policy = 1\n[jobs]\nrounds = 5"), offer())
    assert str(refusal) == "[jobs] rounds: rounds = 20; this site allows 5: ask for fewer"


def test_transforms_are_found_within_others_and_on_the_way_down() -> None:
    within = offer("transforms=[{name = 'feedback', around = [{name = 'top_k', fraction = 0.1}, 'int8']}]")
    assert rules('[jobs]\ntransforms = ["feedback", "int8"]', within) == ["[jobs] transforms"]
    assert rules('[jobs]\nrequire_transforms = ["top_k"]', within) == []
    assert rules('[jobs]\ntransforms = ["clip", "int8"]', offer("broadcast=fp8")) == ["[jobs] transforms"]


def test_codecs_that_the_job_leaves_to_atoll_are_not_allowed_unseen() -> None:
    automatic = offer("transforms=[]", "compress={link_mbit_s = 20.0}")
    assert rules('[jobs]\ntransforms = ["int8"]', automatic) == ["[jobs] transforms"]


def test_files_lie_where_they_truly_lie(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    for each in ("open/a.csv", "closed/b.csv"):
        (tmp_path / each).write_text("x\n")
    (tmp_path / "open" / "link.csv").symlink_to(tmp_path / "closed" / "b.csv")

    def judged(path: str) -> list[str]:
        data = Named(name="table", path=path, label="ill", features=["age"])
        return rules(f'[data]\nfolders = ["{tmp_path}/open"]', offer(data=data))

    assert judged(f"{tmp_path}/open/a.csv") == []
    for path in ("closed/b.csv", "open/../closed/b.csv", "open/link.csv", "open-more/c.csv"):
        assert judged(f"{tmp_path}/{path}") == ["[data] folders"]


def data(**parameters: object) -> Offer:
    return offer(data=Named(name="table", path="a.csv", **parameters))


def test_columns_are_named_and_allowed() -> None:
    policy = '[data]\ncolumns = ["age", "ill", "lab_*"]\ndeny_columns = ["lab_hiv"]'
    assert rules(policy, data(label="ill", features=["age", "lab_k"])) == []
    assert rules(policy, data(label="ill", features=["age", "name"])) == ["[data] columns"]
    assert rules(policy, data(label="ill", features=["lab_hiv"])) == ["[data] deny_columns"]
    assert rules(policy, data(label="ill", by="name", features=["age"])) == ["[data] columns"]
    assert rules(policy, data(label="ill")) == ["[data] columns"]  # it would read them all
    assert rules("[data]", data(label="ill")) == []
    policy_ = read_policy("site_policy = 1\n" + policy)
    assert [each.rule for each in refused_columns(policy_, ["age", "town"])] == ["[data] columns"]


def test_a_budget_is_asked_for_and_added_up() -> None:
    silent_text = JOB[: JOB.index("[privacy]")]
    document = parse(silent_text)
    silent = Offer(check(document), document.values)
    assert rules("[privacy]\nrequired = true", silent) == ["[privacy] required"]
    assert rules("[privacy]\nepsilon = 1.0", silent) == []
    policy = "[privacy]\nepsilon_in_all = 6.0\ndelta_in_all = 1.5e-5"
    assert rules(policy, usage=Usage(epsilon=2.0, delta=0.0)) == []
    assert rules(policy, usage=Usage(epsilon=2.1, delta=1e-5)) == ["[privacy] epsilon_in_all", "[privacy] delta_in_all"]


def test_resources_that_a_job_would_be_given() -> None:
    policy = read_policy('site_policy = 1\n[resources]\nthreads = 2\nmemory_gib = 1.0\njobs = 1\nhours = "20:00-06:00"')
    night, noon = datetime(2026, 11, 22, 23), datetime(2026, 11, 22, 12)
    assert judge(policy, offer(), Usage(threads=2, memory_bytes=1 << 30, now=night)) == []
    found = judge(policy, offer(), Usage(threads=3, memory_bytes=(1 << 30) + 1, jobs=1, now=noon))
    assert {each.rule.split()[1]: each.for_now for each in found} == {
        "threads": False,
        "memory_gib": False,
        "jobs": True,
        "hours": True,
    }


def test_code_runs_only_if_a_trusted_key_signed_exactly_it() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    policy = f'[code]\nkeys = ["{public_text(key)}"]'
    plain, bundle = offer(), b"def train(module, loader): ..."
    assert rules(policy, offer(bundle=bundle)) == ["[code] keys"]
    assert rules(policy, offer(bundle=bundle, signature=sign_job(key, plain.text, bundle))) == []
    for signer, text, code in ((other, plain.text, bundle), (key, plain.text + " ", bundle), (key, plain.text, bundle + b" ")):
        assert rules(policy, offer(bundle=bundle, signature=sign_job(signer, text, code))) == ["[code] keys"]
    assert rules("[code]", offer(bundle=bundle, signature=sign_job(key, plain.text, bundle))) == ["[code] keys"]
    signed = offer(signature=sign_job(key, plain.text))
    assert rules(policy + "\nsigned_jobs = true", signed) == []
    assert rules(policy + "\nsigned_jobs = true", offer(signature=b"short")) == ["[code] signed_jobs"]


def test_a_job_is_the_same_whatever_its_spaces_and_comments() -> None:
    values: Mapping[str, Any] = parse("# another\n" + JOB.replace(" = ", "=")).values
    assert Offer(offer().job, values).digest == offer().digest
    assert offer("seed=1").digest != offer().digest
