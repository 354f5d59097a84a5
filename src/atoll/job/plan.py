"""What a checked job will do, said without running it: what is trained, what crosses the network, how many bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from atoll import catalog
from atoll.errors import AtollError, ConfigError
from atoll.job import codecs, smaller, values
from atoll.job.check import clients_of, spelling
from atoll.job.codecs import FLOAT_BYTES
from atoll.job.compress import Chosen, chosen
from atoll.job.schema import Job, Named
from atoll.job.together import links_of
from atoll.models import shapes
from atoll.policy import over_selecting
from atoll.report.units import count, number, size


class Trained(NamedTuple):
    """The parameters of a job's model."""

    trainable: int
    frozen: int
    what: str  # "cnn", "LoRA of rank 8 on ..."


class Plan(NamedTuple):
    """A job in figures; None where they are not known before the data or the model are there."""

    trained: Trained | None
    unknown: str  # why `trained` is None
    clients: int | None
    asked: int | None  # clients a round
    rounds: int
    down: float  # models to each client a round, in fp32
    up: float  # models from each client a round, in fp32
    up_extra_bytes: float  # beside the models, such as one number
    judged: int  # times that the model goes to every client, to be judged or adapted there
    probed: int | None = 0  # clients that are sent the model before a round, to say their loss
    down_extra_bytes: float = 0.0  # beside the models
    at_most: bool = False  # what goes each way depends on what happens, and is no more than this
    spare: int = 0  # clients a round that are asked too, and whose answers are not waited for

    @property
    def down_bytes(self) -> float | None:
        """To one client in one round."""
        return self._models(self.down, self.down_extra_bytes)

    @property
    def up_bytes(self) -> float | None:
        """From one client in one round."""
        return self._models(self.up, self.up_extra_bytes)

    def _models(self, times: float, extra_bytes: float) -> float | None:
        if not times:
            return extra_bytes
        return None if self.trained is None else self.trained.trainable * FLOAT_BYTES * times + extra_bytes

    @property
    def round_bytes(self) -> float | None:
        """Both ways, all clients of one round of training."""
        probing = None if self.probed is None else self._models(self.probed, 0.0)
        if self.down_bytes is None or self.up_bytes is None or self.asked is None or probing is None:
            return None
        return (self.down_bytes + self.up_bytes) * self.asked + self.down_bytes * self.spare + probing

    @property
    def judging_bytes(self) -> float | None:
        """In the whole run, to clients that judge the model or adapt it to themselves; every client has a test split."""
        if not self.judged:
            return 0.0
        if self.trained is None or self.clients is None:
            return None
        return self.trained.trainable * FLOAT_BYTES * self.clients * self.judged

    @property
    def total_bytes(self) -> float | None:
        """All that the run sends."""
        if self.round_bytes is None or self.judging_bytes is None:
            return None
        return self.round_bytes * self.rounds + self.judging_bytes


class Traffic(NamedTuple):
    """What one work of an algorithm sends for one client, as the algorithm's literal TRAFFIC says by work."""

    down: float = 1  # models to the client
    up: float = 1  # models from it
    up_values: float = 0  # numbers beside them
    down_per: Mapping[str, float] = {}  # numbers, at most, for each one of what a parameter of the algorithm counts
    up_per: Mapping[str, float] = {}
    over: str = ""  # a parameter of the algorithm: in so many rounds the model goes each way once
    narrow: str = ""  # a parameter of the algorithm: what goes each way has so much of each hidden layer
    sparse: str = ""  # what goes each way is under a mask, as `job.smaller.sparse` knows by this word
    at_most: bool = False  # no more than that

    @property
    def parts(self) -> bool:
        """Clients are sent other parts of the model each time, or each its own: nobody holds the last version of them."""
        return bool(self.over or self.narrow or self.sparse)


def plan(job: Job) -> Plan:
    """The figures of a checked job."""
    clients = clients_of(job)
    asked = job.policy.parameters.get("clients_per_round") or job.policy.parameters.get("buffer") or clients
    algorithm = catalog.find("algorithm", job.algorithm.name)
    works = {w: _in_turn(algorithm, job, Traffic(**sends)) for w, sends in ({"train": {}} | dict(algorithm.traffic)).items()}
    try:
        trained, unknown = _trained(job.task), ""
    except AtollError as error:
        trained, unknown = None, str(error)
    job = _compressed(job, trained, clients, asked).job
    narrowed = codecs.share(links_of(job))  # transforms are attached to training alone
    up = sum(each.up * (narrowed if work == "train" else 1.0) for work, each in works.items())
    extra = sum(each.up_values * FLOAT_BYTES * (narrowed if work == "train" else 1.0) for work, each in works.items())
    lately = codecs.broadcast(job, asked, clients)  # and so is the broadcast
    down = sum(each.down * (lately if work == "train" and not each.parts else 1.0) for work, each in works.items())
    per = {way: sum(_counted(algorithm, job, getattr(each, way)) for each in works.values()) for way in ("down_per", "up_per")}
    extra += per["up_per"] * FLOAT_BYTES
    probed = _probed(job.selection, asked, clients) if job.selection else 0
    beside, at_most = per["down_per"] * FLOAT_BYTES, any(per.values()) or any(each.at_most for each in works.values())
    return Plan(
        trained, unknown, clients, asked, job.rounds, down, up, extra, _judged(job), probed, beside, at_most, _spare(job, clients)
    )


def _compressed(job: Job, trained: Trained | None, clients: int | None, asked: int | None) -> Chosen:
    """With the codecs that [compress] chooses, as far as the model's size is known."""
    return chosen(job, trained.trainable if trained else None, asked / clients if asked and clients else None)


def _in_turn(algorithm: catalog.Entry, job: Job, each: Traffic) -> Traffic:
    """What an algorithm that sends a part of the model at a time sends in one round."""
    parameter = algorithm.parameter(each.over)
    parts = job.algorithm.parameters.get(each.over, parameter.default if parameter else 1)
    each = each._replace(down=each.down / parts, up=each.up / parts)
    if not each.narrow and not each.sparse:
        return each
    given = {p.name: job.algorithm.parameters.get(p.name, p.default) for p in algorithm.parameters}
    if each.narrow:
        part = smaller.narrow(_model_of(job.task), given[each.narrow])
    else:
        asked = job.policy.parameters.get("clients_per_round")
        everybody = job.policy.name == "synchronous" and asked in (None, clients_of(job))
        part = smaller.sparse(each.sparse, _model_of(job.task), given, job.rounds, everybody)
    return each._replace(down=each.down * part.down, up=each.up * part.up, at_most=part.at_most)


def _model_of(task: Named) -> smaller.Model | None:
    """The task's model, where it is one of the catalog, from scratch."""
    entry = catalog.find("task", task.name)
    for parameter in entry.parameters:
        given = task.parameters.get(spelling(parameter), parameter.default)
        if values.kind_of(parameter.annotation) == "model" and given is not None:
            named = Named.of(given)
            shape = getattr(shapes, named.name, None)
            if shape is not None and catalog.find("model", named.name).module.startswith("atoll."):
                return smaller.Model(named.name, named.parameters, shape(**named.parameters))
    return None


def _counted(algorithm: catalog.Entry, job: Job, per: Mapping[str, float]) -> float:
    """Numbers that go one way: so many for each one of what a parameter counts, as the job sets it or by default."""
    given = {each.name: job.algorithm.parameters.get(each.name, each.default) for each in algorithm.parameters}
    return sum(each * float(given[name]) for name, each in per.items())


def _spare(job: Job, clients: int | None) -> int:
    """Clients that over-selection asks beside those that it waits for."""
    if job.policy.name != "over_selecting":
        return 0
    policy = over_selecting(**job.policy.parameters)
    asked, heard = policy.in_flight or 0, policy.close_after or 0
    return asked - heard if clients is None else max(min(asked, clients) - heard, 0)


def _probed(selection: Named, asked: int | None, clients: int | None) -> int | None:
    """Clients that a rule of selection sends the model before each round, as its literal TRAFFIC says."""
    entry = catalog.find("selection", selection.name)
    probe = entry.traffic.get("probe")
    given = {each.name: selection.parameters.get(each.name, each.default) for each in entry.parameters}
    if probe is None or any(given.get(key) != value for key, value in probe["when"].items()):
        return 0
    wanted = given.get(probe["clients"]) or (None if asked is None else asked * probe["cohorts"])
    return wanted if wanted is None or clients is None else min(wanted, clients)


def _judged(job: Job) -> int:
    """Times that the model is sent to every client apart from training; who judges sends back numbers alone."""
    every = job.evaluation.every or job.rounds
    evaluations = -(-job.rounds // every) if job.evaluation.per_client else 0
    return evaluations + (3 if job.personalise else 0)  # the common model judged, trained on, the own one judged


def rows(job: Job) -> Iterator[tuple[str, str]]:
    """The plan as label and sentence, for a person."""
    figures = plan(job)
    yield "data", f"{job.data.name}, {_clients(figures)}{_partition(job.data)}"
    yield "task", f"{job.task.name}; {_model(figures)}"
    yield "local work", _spelled(job.local) if job.local else "the algorithm's own"
    yield "algorithm", f"{_spelled(job.algorithm)}; {_spelled(job.policy)}"
    if job.selection:
        probe = f"; {count(figures.probed, 'client')} judge the model before each round" if figures.probed else ""
        yield "selection", _spelled(job.selection) + probe
    whole, why = _compressed(job, figures.trained, figures.clients, figures.asked)
    if job.compress:
        yield "compression", why or "chosen for the link when the model's size is known"
    links = ", then ".join(_spelled(each) for each in whole.transforms)
    yield "update passes", links or "nothing: no clipping, compression or noise"
    most = "at most " if figures.at_most else ""
    steps = f": the model at first, then by {_spelled(job.broadcast)} the steps that it lacks" if job.broadcast else ""
    yield "to each client", f"{most}{size(figures.down_bytes)} a round{_times(figures.down)}{steps}"
    yield "from each client", f"{most}{size(figures.up_bytes)} a round{_times(figures.up)}"
    if figures.judged:
        to_each = None if figures.trained is None else figures.trained.trainable * FLOAT_BYTES
        yield "judging", f"{size(to_each)} to each client {_often(figures.judged)}, {size(figures.judging_bytes)} in all"
    yield "in all", f"{most}{size(figures.round_bytes)} a round, {size(figures.total_bytes)} in {count(figures.rounds, 'round')}"
    if job.fleet:
        yield "fleet", f"{_spelled(job.fleet)}; time, energy and CO2e are simulated"
    workers = job.engine.parameters.get("workers")
    yield "engine", job.engine.name + (f", {count(workers, 'worker')}" if workers else "")


def _clients(figures: Plan) -> str:
    if figures.clients is None:
        return "clients as the data has them"
    asked = figures.asked or figures.clients
    return f"{count(figures.clients, 'client')}, {'all' if asked == figures.clients else asked} in a round"


def _partition(data: Named) -> str:
    given = data.parameters.get("partition")
    if given is None:
        return ""
    return f", split by {_spelled(Named.of(given))}"


def _model(figures: Plan) -> str:
    if figures.trained is None:
        return figures.unknown
    frozen = f", {number(figures.trained.frozen)} frozen (never sent)" if figures.trained.frozen else ""
    return f"{figures.trained.what}: {number(figures.trained.trainable)} parameters trained{frozen}"


def _often(times: int) -> str:
    return {1: "once", 2: "twice"}.get(times, f"{times} times")


def _times(factor: float) -> str:
    return "" if not factor or math.isclose(factor, 1) else f" ({factor:.3g} x the trained parameters in fp32)"


def _spelled(named: Named) -> str:
    """`dirichlet (alpha 0.3)`"""
    inside = ", ".join(f"{key} {_short(value)}" for key, value in named.parameters.items() if key != "partition")
    return f"{named.name} ({inside})" if inside else named.name


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key} {_short(inner)}" for key, inner in value.items() if key != "name")
        return f"{value.get('name', '')}{f' ({rest})' if rest else ''}".strip()
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _trained(task: Named) -> Trained:
    """Of the task's model, from the shapes of its state.

    Raises:
        AtollError: the shapes are not known without building the model; the message says why.
    """
    entry = catalog.find("task", task.name)
    for parameter in entry.parameters:
        given = task.parameters.get(spelling(parameter), parameter.default)
        if values.kind_of(parameter.annotation) == "model" and given is not None:
            return _built(Named.of(given))
        if parameter.name == "model" and isinstance(given, str):
            classes = entry.parameter("classes")
            outputs = task.parameters.get("classes", classes.default) if classes else 0
            return _pretrained(given, task.parameters.get("adapter"), outputs)
    raise ConfigError("its parameters are known once the model is built")


def _built(model: Named) -> Trained:
    """A model of the catalog, from scratch."""
    shape = getattr(shapes, model.name, None)
    if shape is None or not catalog.find("model", model.name).module.startswith("atoll."):
        raise ConfigError(f"the parameters of {model.name} are known once it is built")
    return Trained(shapes.count(shape(**model.parameters)), 0, _spelled(model))


def _pretrained(name: str, adapter: Mapping[str, Any] | None, classes: int) -> Trained:
    """A pretrained model, whole or under an adapter; `classes` outputs of a new head, 0: none."""
    from atoll.tasks.pretrained import parameter_shapes

    base = parameter_shapes(name)
    if base is None:
        raise ConfigError(
            f"{name} is not on this machine yet: its size is known once it has been fetched, which `atoll run` does"
        )
    width = next((shape[0] for tensor, shape in base.items() if tensor.endswith("pooler.dense.weight")), 0)
    head = classes * (width + 1)
    if adapter is None:
        return Trained(shapes.count(base) + head, 0, f"{name}, all of it")
    low_rank = shapes.lora(base, adapter.get("rank", 8), adapter.get("targets"))
    where = ", ".join(adapter["targets"]) if "targets" in adapter else "queries and values"
    what = f"{name}, LoRA of rank {adapter.get('rank', 8)} on {where}{' and a new head' if head else ''}"
    return Trained(shapes.count(low_rank) + head, shapes.count(base), what)
