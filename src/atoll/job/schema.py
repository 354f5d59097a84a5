"""The sections of a job file and the types of what stands in them; what a name may carry is the catalog's to say.

A section that names a factory is written in full (`[policy] name = "synchronous"`) or, when the name says it all, as
one key (`policy = "synchronous"`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

ANYBODY: dict[str, list[str]] = {"*": []}  # what `sites = "open"` stands for
FORMAT = 1  # the number after `atoll =`; a file with a higher one was written by a newer Atoll


class Section(BaseModel):
    """A table of the job file: no key but those it declares."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Named(BaseModel):
    """A table that names a factory of the catalog and sets its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str

    @classmethod
    def of(cls, given: str | dict[str, Any]) -> Named:
        """From what stands in a job file: a name, or a table with one.

        >>> Named.of("int8").name, Named.of({"name": "top_k", "fraction": 0.01}).parameters
        ('int8', {'fraction': 0.01})
        """
        return cls(name=given) if isinstance(given, str) else cls.model_validate(given)

    @property
    def parameters(self) -> dict[str, Any]:
        """What stands beside the name."""
        return dict(self.model_extra or {})


def spelled_out(value: Any) -> Any:
    """A table that has nothing but a name may be written as that name."""
    return {"name": value} if isinstance(value, str) else value


Choice = Annotated[Named, BeforeValidator(spelled_out)]


class Evaluation(Section):
    """When the model is judged, and on whose data."""

    every: int = Field(1, ge=0)  # rounds between evaluations on the held-out set; 0: only at the end
    batch_size: int | None = Field(None, ge=1)
    per_client: bool = False  # at each evaluation, each client's own test split too
    examples: int | None = Field(None, ge=1)  # judge on this many held-out examples, drawn once


class Tokens(Section):
    """How texts become tokens; the tokenizer is that of the task's model, or characters where it has none."""

    length: int = Field(128, ge=2)  # of a block, or of a source text
    target_length: int = Field(64, ge=2)  # of an answer, for sequence-to-sequence models
    keep: bool = True  # in the cache folder, where the next run of the same texts finds them


class TensorBoard(Section):
    """Scalars for TensorBoard."""

    folder: str | None = None  # none: in the run's folder


class MLflow(Section):
    """Metrics for an MLflow tracking server."""

    uri: str | None = None
    experiment: str = "atoll"


class Sinks(Section):
    """Where metrics go besides the runs database."""

    tensorboard: TensorBoard | None = None
    mlflow: MLflow | None = None


class Samples(Section):
    """A passage that a language model continues before and after training, for the report."""

    prompt: str = Field(min_length=1)
    tokens: int = Field(60, ge=1, le=4096)
    temperature: float = Field(0.7, ge=0.0, le=10.0)  # 0: the likeliest token each time


class Compress(Section):
    """Codecs chosen for the clients' uplink, or for a number of bytes."""

    name: Literal["auto"] = "auto"
    link_mbit_s: float | None = None
    upload_s: float = 10.0  # that an update may take on that link
    budget_bytes: float | None = None  # of an update, instead


class Privacy(Section):
    """The privacy budget that a job declares to the sites; a declaration, which nothing computes or holds it to yet."""

    epsilon: float = Field(gt=0)
    delta: float = Field(ge=0, lt=1)


class Job(Section):
    """A whole job file."""

    atoll: int
    name: str | None = Field(None, min_length=1)  # none: the file's name
    seed: int = Field(0, ge=0, lt=2**63)
    rounds: int = Field(ge=1)
    data: Choice
    tokens: Tokens = Tokens()
    task: Choice
    local: Choice | None = None  # none: the algorithm says itself what its clients do
    algorithm: Choice
    transforms: list[Choice] = []
    compress: Annotated[Compress | None, BeforeValidator(spelled_out)] = None  # none: what `transforms` says
    broadcast: Choice | None = None  # a transform that is a codec; none: the model goes to clients as it is
    policy: Choice = Named(name="synchronous")
    selection: Choice | None = None  # none: a random cohort
    engine: Choice = Named(name="serial")
    fleet: Choice | None = None  # none: real time
    evaluation: Evaluation = Evaluation()
    personalise: Choice | None = None  # local work by which each client adapts the final model to itself
    sinks: Sinks = Sinks()
    samples: Samples | None = None
    privacy: Privacy | None = None  # what sites may ask a job to declare
    # deployed: which clients each site speaks for; none: a site is the client of its name; open: so is any site that comes
    sites: Annotated[dict[str, list[str]], BeforeValidator(lambda given: ANYBODY if given == "open" else given)] = {}
    regions: dict[str, Annotated[int, Field(ge=1)]] = {}  # deployed: clients whose site is a relay, and how many each stands for

    @property
    def seats(self) -> dict[str, list[str]]:
        """What [sites] says of each site; of an open job, nothing."""
        return {} if self.open else self.sites

    @property
    def open(self) -> bool:
        """Any site may take part."""
        return self.sites == ANYBODY
