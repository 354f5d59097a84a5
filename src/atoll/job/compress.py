"""`[compress]`: the codecs that `transforms.compress.auto` chooses for a link or a budget, as if the job had named them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from atoll import catalog
from atoll.errors import ConfigError
from atoll.job.schema import Job, Named
from atoll.job.text import Spot
from atoll.transforms.compress import auto


class Chosen(NamedTuple):
    """A job whose transforms are all named, and why those were chosen that it did not name."""

    job: Job
    why: str


def chosen(job: Job, parameters: int | None, participation: float | None) -> Chosen:
    """The job with the codecs for an update of so many trained parameters; itself where it asks for none.

    `parameters`: None where the model's size is not known yet; then nothing is chosen.

    Raises:
        ConfigError: the budget is too small for any codec.
    """
    if job.compress is None or parameters is None:
        return Chosen(job, "")
    given = job.compress
    sends = catalog.find("algorithm", job.algorithm.name).traffic.get("train", {}).get("up", 1)
    allowed = auto.budget(given.link_mbit_s, given.upload_s, given.budget_bytes)
    choice = auto.choose(round(parameters * sends), allowed, participation)
    links = [Named.model_validate(dict(link)) for link in choice.links]
    if links and links[0].name == "feedback":  # what bounds the norm goes inside it, after the residual
        around = [*(each.model_dump() for each in job.transforms), *links[0].parameters["around"]]
        links = [Named.model_validate(links[0].model_dump() | {"around": around})]
    else:
        links = [*job.transforms, *links]
    return Chosen(job.model_copy(update={"transforms": links, "compress": None}), choice.why)


def problems(job: Job) -> Iterator[tuple[Spot, str]]:
    """What can be said of [compress] before the model's size is known, and where it stands."""
    if job.compress is None:
        return
    try:
        auto.budget(job.compress.link_mbit_s, job.compress.upload_s, job.compress.budget_bytes)
    except ConfigError as error:
        yield ("compress",), f"[compress] {str(error).removeprefix('compress auto: ').removeprefix('compress ')}"
    for i, each in enumerate(job.transforms):
        if "bounds_norm" not in catalog.find("transform", each.name).said:
            told = (
                f"[[transforms]] number {i + 1}: [compress] chooses the codecs itself; remove {each.name}, or remove [compress]"
            )
            yield ("transforms", i, "name"), told
    if catalog.find("algorithm", job.algorithm.name).traffic.get("train", {}).get("up") == 0:
        yield ("compress",), f"[compress] has nothing to do: the clients of {job.algorithm.name} send a few scalars; remove it"
