"""[compress] in a job: what is chosen for a link is shown, built and sent, and what can't be is said with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.errors import ConfigError, JobError
from atoll.job.build import build, load_job
from atoll.job.plan import plan, rows
from atoll.types import Event

TEXT = """
atoll = 1
rounds = 2
data = { name = "digits", clients = 4 }
task = { name = "classification", model = { name = "mlp", inputs = 64, hidden = [64], outputs = 10 } }
local = { name = "sgd", lr = 0.1 }
algorithm = "fedavg"
"""
VALUES = 64 * 64 + 64 + 64 * 10 + 10


def job(tmp_path: Path, more: str) -> Path:
    file = tmp_path / "job.toml"
    file.write_text(TEXT + more)
    return file


@pytest.mark.parametrize(
    ("bytes_a_value", "passes"),
    [(5.0, "nothing"), (2.1, "cast"), (1.1, "int8"), (0.3, "layered"), (0.02, "feedback (around top_k")],
)
def test_what_is_chosen_is_shown_and_sent(tmp_path: Path, bytes_a_value: float, passes: str) -> None:
    budget = round(bytes_a_value * VALUES)
    read = load_job(job(tmp_path, f"compress = {{ budget_bytes = {budget} }}\n"))
    told = dict(rows(read))
    assert told["update passes"].startswith(passes)
    assert f"{VALUES:,} values" in told["compression"]
    found: list[Event] = []
    build(read).run(1, sinks=[type("Kept", (), {"emit": lambda self, event: found.append(event)})()])
    sent = [e.metrics["bytes_up"] - e.metrics["header_up"] for e in found if e.kind == "update" and e.work == "train"]
    assert len(sent) == 4
    assert max(sent) <= 1.1 * budget + 64  # scales and positions vary with the update


def test_a_bound_on_the_norm_goes_inside_the_feedback(tmp_path: Path) -> None:
    more = 'compress = { budget_bytes = 100 }\n[[transforms]]\nname = "clip"\nnorm = 1.0\n'
    read = load_job(job(tmp_path, more))
    assert dict(rows(read))["update passes"].startswith("feedback (around clip (norm 1.0), top_k")
    assert build(read).run(1).metrics["accuracy"] > 0


def test_the_plan_counts_what_is_chosen(tmp_path: Path) -> None:
    whole, narrow = (plan(load_job(job(tmp_path, more))) for more in ("", "compress = { budget_bytes = 5300 }\n"))
    assert whole.up_bytes == 4 * VALUES
    assert narrow.up_bytes == pytest.approx(8.125 / 8 * VALUES)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('compress = "auto"\n', "give either link_mbit_s"),
        ("compress = { link_mbit_s = 1.0, budget_bytes = 10.0 }\n", "give either link_mbit_s"),
        ("compress = { link_mbit_s = 0.0 }\n", "link_mbit_s = 0.0: must be above 0"),
        ("compress = { link_mbit_s = 1.0, upload_s = -1.0 }\n", "upload_s = -1.0: must be above 0"),
        ("compress = { budget_bytes = 1000.0 }\n[[transforms]]\nname = 'int8'\n", "remove int8, or remove [compress]"),
        ("compress = { speed = 1 }\n", "there is no key 'speed'"),
        ("compress = { name = 'best', link_mbit_s = 1.0 }\n", "'auto'"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_line(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(JobError) as caught:
        load_job(job(tmp_path, more))
    assert said in str(caught.value)
    assert "job.toml:8" in str(caught.value) or "job.toml:10" in str(caught.value)


def test_a_budget_of_nothing_is_refused_before_work_starts(tmp_path: Path) -> None:
    read = load_job(job(tmp_path, "compress = { budget_bytes = 0.001 }\n"))
    for ask in (plan, build):
        with pytest.raises(ConfigError, match="too few to send anything"):
            ask(read)
