from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ConfigError, IdentityError, NameRefused
from atoll.identity.names import INVITED, ROLES, checked_host, checked_name, checked_role, read_uri, uri

TRICKS = [
    "",
    ".",
    "..",
    "../admin",
    "a/../b",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "a..b",
    ".hidden",
    "a.",
    "-rf",
    "a-",
    "a\n",
    "a\x00b",
    "a b",
    "A",
    "Hospital",
    "%2e%2e",
    "hospita\u043b",  # a Cyrillic letter
    "a\u202eb",
    "\uff41",  # a wide a
    "x" * 64,
    "a?role=admin",
    "a#b",
    "a@b",
    "*",
]


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_are_refused(name: str) -> None:
    with pytest.raises(NameRefused):
        checked_name(name)
    for role in ROLES:
        assert read_uri(f"spiffe://trial.example/{role}/{name}", "trial.example") is None


@given(st.one_of(st.text(max_size=70), st.text("ab.-_/A0", max_size=70)))
def test_a_name_that_passes_is_one_file_and_one_part_of_a_uri(name: str) -> None:
    try:
        checked_name(name)
    except NameRefused:
        assert read_uri(uri("trial.example", "site", name), "trial.example") is None
        return
    assert 1 <= len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert name[0].isalnum()
    assert name[-1].isalnum()
    assert Path(name).name == name == Path("/a", name).resolve().name
    for role in ROLES:
        assert read_uri(uri("trial.example", role, name), "trial.example") == (role, name)


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True))
def test_plain_names_pass(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://other.example/site/a",
        "spiffe://trial.example.evil.example/site/a",
        "spiffe://trial.example@evil.example/site/a",
        "spiffe://trial.example/site/a/admin/b",
        "spiffe://trial.example/root/a",
        "spiffe://trial.example/site",
        "spiffe://trial.example//site/a",
        "SPIFFE://trial.example/site/a",
        "https://trial.example/site/a",
        " spiffe://trial.example/site/a",
    ],
)
def test_another_uri_names_nobody(text: str) -> None:
    assert read_uri(text, "trial.example") is None


def test_no_token_makes_a_coordinator() -> None:
    assert set(INVITED) == {"site", "researcher", "auditor", "admin"}
    for role in ("coordinator", "Site", "", "root"):
        with pytest.raises(NameRefused, match="researcher"):
            checked_role(role)


@pytest.mark.parametrize(
    "host", ["", "*", "*.example.org", "a:8443", "a/b", "a b", "-a", "a-", "a..b", "1.2.3", "999.1.1.1", "\u00fc.example"]
)
def test_hosts_that_are_none_are_refused(host: str) -> None:
    with pytest.raises(NameRefused):
        checked_host(host)


def test_hosts() -> None:
    assert checked_host("node-1.Example.ORG") == "node-1.example.org"
    assert str(checked_host("2001:db8::1")) == "2001:db8::1"


def test_a_refused_name_is_both_a_matter_of_identity_and_of_settings() -> None:
    assert issubclass(NameRefused, IdentityError)
    assert issubclass(NameRefused, ConfigError)  # the command line ends with 2 for these
