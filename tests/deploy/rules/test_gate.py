"""The gate of a site: consent, policy and log together, over a restart too."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.deploy.rules.approvals import Consents
from atoll.deploy.rules.gate import Gate
from atoll.deploy.rules.judge import Offer
from atoll.deploy.rules.permit import Declared
from atoll.deploy.rules.policy import read_policy
from atoll.deploy.verify import records, verify
from atoll.errors import StoreError, UnknownName
from atoll.job.check import check
from atoll.job.templates import named
from atoll.job.text import parse
from atoll.types import Assignment, ClientId, Failure, Update
from atoll.wire import frame

NORTH = ClientId("north")
LIKE = {"w": torch.zeros(1 << 18)}  # 1 MiB
DECLARED = Declared("train", LIKE)


def offer(*overrides: str, name: str = "hearts", **other: Any) -> Offer:
    document = parse(named("hospitals", name), overrides=overrides)
    return Offer(check(document), document.values, sender="university", **other)


def gate(folder: Path, text: str = 'approval = "automatic"', hour: int = 12) -> Gate:
    return Gate(folder, read_policy(f"site_policy = 1\n{text}"), "university", lambda: datetime(2026, 11, 22, hour))


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in records(folder / "audit.jsonl") if not kinds or record["event"] in kinds]


def update(round: int = 0, value: float = 0.5, client: ClientId = NORTH) -> Update:
    return Update(round, client, "train", {"w": torch.full_like(LIKE["w"], value)}, 8.0, {"loss": 0.5})


def test_a_job_waits_for_consent_and_a_changed_one_for_another(tmp_path: Path) -> None:
    here = gate(tmp_path, 'approval = "manual"')
    found = here.admit(offer())
    assert found.status == "waiting"
    assert f"atoll site approve {offer().digest[:12]}" in found.text
    Consents(tmp_path).decide("hearts", "approved", by="anna")
    assert here.admit(offer()).status == "admitted"
    assert here.admit(offer("local.lr=0.2")).status == "waiting"
    assert here.admit(offer(bundle=b"code")).status == "refused"  # unsigned, and its own consent aside
    assert gate(tmp_path, 'approval = "manual"').admit(offer()).status == "admitted"
    with pytest.raises(UnknownName, match="may be any of 3 jobs"):
        Consents(tmp_path).decide("hearts", "denied", by="anna")
    Consents(tmp_path).decide(offer().digest[:8], "denied", by="anna", why="no longer")
    assert here.admit(offer()).text == "the site has denied this job: no longer"
    assert gate(tmp_path).admit(offer()).status == "denied"  # automatic approval does not undo a denial


def test_what_the_policy_refuses_no_consent_mends(tmp_path: Path) -> None:
    here = gate(tmp_path, '[jobs]\nalgorithms = ["fedavg"]')
    assert here.admit(offer()).status == "refused"
    Consents(tmp_path).decide("hearts", "approved", by="anna")
    assert here.admit(offer()).status == "refused"
    assert Consents(tmp_path).find("hearts").refusals[0].startswith("[jobs] algorithms: ")


def test_hours_make_a_job_wait(tmp_path: Path) -> None:
    text = 'approval = "automatic"\n[resources]\nhours = "20:00-06:00"'
    assert gate(tmp_path, text, hour=12).admit(offer()).status == "waiting"
    assert gate(tmp_path, text, hour=21).admit(offer()).status == "admitted"


def test_a_consent_that_was_copied_to_another_job_is_none(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    consents.ask(offer())
    consents.decide("hearts", "approved", by="anna")
    forged = consents.folder / offer("rounds=99").digest
    (consents.folder / offer().digest).rename(forged)
    with pytest.raises(StoreError, match="is the consent to another job"):
        consents.ask(offer("rounds=99"))


def test_budgets_add_up_over_jobs_and_restarts(tmp_path: Path) -> None:
    text = 'approval = "automatic"\n[privacy]\nepsilon_in_all = 5.0'
    declared = "privacy={epsilon = 3.0, delta = 1e-6}"
    assert gate(tmp_path, text).admit(offer(declared)).status == "admitted"
    assert gate(tmp_path, text).admit(offer(declared)).status == "admitted"  # the same run, once
    assert gate(tmp_path, text).admit(offer(declared, run="hearts-again")).status == "refused"  # another run spends anew
    assert gate(tmp_path, text).admit(offer(declared, name="lungs")).status == "refused"
    assert gate(tmp_path, text).admit(offer("privacy={epsilon = 2.0, delta = 0.0}", name="lungs")).status == "admitted"


def test_what_leaves_is_in_the_log_first_and_once(tmp_path: Path) -> None:
    here, sent = gate(tmp_path), update()
    assert here.enter("hearts", Assignment(0, NORTH, "train", LIKE, 7)) is None
    assert here.leave("hearts", sent, DECLARED) is sent
    assert here.leave("hearts", sent, DECLARED) is sent
    assert gate(tmp_path).leave("hearts", sent, DECLARED) is sent  # after a kill, once more
    (left,) = events(tmp_path, "left")
    assert (left["job"], left["round"], left["client"], left["work"], left["to"]) == ("hearts", 0, "north", "train", "university")
    assert left["bytes"] == len(b"".join(frame.write(sent)))
    assert (left["tensors"], left["numbers"], left["first"]) == (1, 1 << 18, ["w float32 [262144]"])
    assert left["metrics"] == ["loss"]
    (came,) = events(tmp_path, "came")
    assert (came["kind"], came["work"], came["sender"]) == ("assignment", "train", "university")
    assert verify(tmp_path / "audit.jsonl").findings == ()


def test_bytes_are_counted_over_clients_rounds_and_restarts(tmp_path: Path) -> None:
    text = 'approval = "automatic"\n[leaves]\nround_mib = 2.1\njob_mib = 3.1'
    south, west = ClientId("south"), ClientId("west")
    here = gate(tmp_path, text)
    assert isinstance(here.leave("hearts", update(), DECLARED), Update)
    assert isinstance(here.leave("hearts", update(client=south), DECLARED), Update)
    here = gate(tmp_path, text)
    refused = here.leave("hearts", update(client=west), DECLARED)
    assert isinstance(refused, Failure)
    assert refused.reason == "refused by the site's policy: [leaves] round_mib"
    assert isinstance(here.leave("hearts", update(client=south), DECLARED), Update)  # it has left already
    assert isinstance(here.leave("hearts", update(1), DECLARED), Update)
    assert isinstance(here.leave("hearts", update(2), DECLARED), Failure)
    assert isinstance(here.leave("lungs", update(2), DECLARED), Update)  # another job


def test_other_answers_to_the_same_question_are_counted_too(tmp_path: Path) -> None:
    here = gate(tmp_path, 'approval = "automatic"\n[leaves]\njob_mib = 2.1')
    answers = [here.leave("hearts", update(value=value), DECLARED) for value in (0.1, 0.2, 0.2, 0.3)]
    assert [type(each) for each in answers] == [Update, Update, Update, Failure]


def test_what_no_frame_carries_stays(tmp_path: Path) -> None:
    odd = update()._replace(tree={"w": torch.zeros(4, dtype=torch.complex64)})
    refused = gate(tmp_path).leave("hearts", odd, Declared("train", odd.tree))
    assert isinstance(refused, Failure)
    assert "is none that can be sent" in events(tmp_path, "refused")[0]["refusals"][0]


def test_a_refusal_quotes_nothing_outside_and_all_inside(tmp_path: Path) -> None:
    here = gate(tmp_path)
    secret = update()._replace(tree={**LIKE, "Jane Doe": torch.zeros(1)})
    refused = here.leave("hearts", secret, DECLARED)
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.reason) == ("error", "refused by the site's policy: declared")
    (told,) = events(tmp_path, "refused")
    assert "Jane Doe" in told["refusals"][0]
    assert [record["kind"] for record in events(tmp_path, "left")] == ["failure"]
    failure = here.leave("hearts", Failure(1, NORTH, "train", "error", "Jane Doe is 44"), DECLARED)
    assert isinstance(failure, Failure)
    assert failure.reason == "the site keeps the reason to itself"


def test_work_that_is_not_allowed_is_not_begun(tmp_path: Path) -> None:
    here = gate(tmp_path, '[leaves]\nwork = ["train"]')
    told = here.enter("hearts", Assignment(0, NORTH, "evaluate", LIKE, 7))
    assert told is not None
    assert told.reason == "refused by the site's policy: [leaves] work"
