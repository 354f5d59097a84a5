"""What a site has to fetch and to send, when that itself is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.remote.errands import Line
from atoll.remote.outbox import Letter
from tests.remote.ends import JOB, NORTH, ask_for, hub_at, link_to, offered, reply, tree_of


def test_a_defect_in_an_errand_ends_the_site_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(line: Line, letter: Letter) -> bool:
        raise ZeroDivisionError("in an errand")

    monkeypatch.setattr(Line, "_put", broken)
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "site") as link:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree_of(10))])
        link.answer(JOB, reply(offered(link)))
        with pytest.raises(ZeroDivisionError, match="in an errand"):
            assert not list(link.events(30.0)), "nobody noticed"
