"""A site whose job fails at the coordinator ends with the reason, and a person at a site without a policy may leave a job."""

from __future__ import annotations

import threading
from pathlib import Path

from typer.testing import CliRunner

from atoll.cli.main import app
from atoll.deploy.brief import brief_of
from atoll.job.text import parse
from atoll.types import ClientId
from tests.deploy.loopback import ALL, SITES, job
from tests.remote.ends import hub_at, until

RUN = "job-1"


def test_a_site_ends_with_the_reason_and_leaves_and_comes_back_before(tmp_path: Path) -> None:
    client = ClientId(SITES["a"])
    with hub_at(tmp_path / "hub") as hub:
        hub.open(RUN, {client: "a"}, brief_of(parse(job(ALL)).values, SITES.values()))

        def person() -> None:
            said: list[bool] = []
            for words, takes_part in ((None, True), (["deny", "job"], False), (["approve", "job"], True)):
                if words:
                    result = CliRunner().invoke(app, ["site", *words, "--folder", str(tmp_path / "a")])
                    assert result.exit_code == 0, result.output
                until(lambda takes_part=takes_part: bool(hub.online(RUN)) == takes_part, f"{words} has no effect")  # type: ignore[misc]
                said.append(takes_part)
            told.extend(said)
            hub.fail(RUN, "a round could not be closed")

        told: list[bool] = []
        at_the_site = threading.Thread(target=person)
        at_the_site.start()
        join = ["join", hub.address, "--site", "a", "--folder", str(tmp_path / "a"), "--insecure-loopback", "--jobs", "1"]
        result = CliRunner().invoke(app, join)
        at_the_site.join()
    assert told == [True, False, True]
    assert result.exit_code == 1
    assert f"{RUN} has failed at its coordinator (a round could not be closed)" in result.output
