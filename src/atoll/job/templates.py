"""The job files that `atoll new` begins with: the examples, as they are packed with the library."""

from __future__ import annotations

import re
from importlib import resources

from atoll.errors import unknown


def names() -> list[str]:
    """What `--template` may be.

    >>> "fashion" in names()
    True
    """
    folder = resources.files("atoll.job") / "examples"
    return sorted(each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml"))


def named(template: str, name: str) -> str:
    """The text of a template, for a job called `name`.

    Raises:
        UnknownName: no such template.

    >>> 'name = "first"' in named("fashion", "first")
    True
    """
    if template not in names():
        raise unknown("template", template, names())
    text = (resources.files("atoll.job") / "examples" / f"{template}.toml").read_text(encoding="utf-8")
    spelled = name.replace("\\", "\\\\").replace('"', '\\"')
    return re.sub(r'^name = ".*"', lambda _: f'name = "{spelled}"', text, count=1, flags=re.MULTILINE)
