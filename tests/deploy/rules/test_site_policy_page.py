"""docs/site-policy.md shows every key of a policy, and shows it as the program has it."""

from __future__ import annotations

import re
from pathlib import Path

from atoll.deploy.rules.policy import SitePolicy, read_policy

PAGE = Path(__file__).parents[3] / "docs" / "site-policy.md"


def example() -> str:
    (text,) = re.findall(r"```toml\n(# site-policy\.toml\n.*?)```", PAGE.read_text(), re.DOTALL)
    return str(text)


def test_the_example_is_a_policy() -> None:
    assert read_policy(example()).approval == "manual"


def test_the_example_has_every_key_there_is() -> None:
    text = example().replace('# sha256 = ["<64 digits>"]', f'sha256 = ["{"ab" * 32}"]')
    policy = read_policy(text)
    assert policy.model_fields_set == set(SitePolicy.model_fields)
    for name in policy.model_fields_set - {"site_policy", "approval"}:
        section = getattr(policy, name)
        assert section.model_fields_set == set(type(section).model_fields), f"[{name}] of the page is not complete"
