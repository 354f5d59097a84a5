"""What is printed of a job, whoever wrote it."""

from __future__ import annotations

import pytest

from atoll.cli.voice import Format, voice_of


def test_what_a_site_has_written_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    voice_of(Format.text).say("client-1 failed: \x1b[2J\x07gone\r", job="trial")
    assert capsys.readouterr().out == "trial: client-1 failed:  [2J gone \n"
