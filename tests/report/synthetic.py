"""Records as a run would leave them, drawn from a seed: realistic enough to judge the page by eye."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from atoll.store.record import Incident, Note, Point, Record

CONFIG = {
    "atoll": 1,
    "name": "shakespeare-lora",
    "seed": 7,
    "rounds": 20,
    "data": {"name": "shakespeare", "clients": 8, "tokens": 128, "split": [0.9, 0.1]},
    "task": {"name": "causal_lm", "model": "SmolLM2-135M", "adapter": {"rank": 8, "alpha": 16.0}},
    "local": {"name": "adamw", "lr": 0.0002, "batch_size": 4, "steps": 12},
    "algorithm": {"name": "fedavg"},
    "transforms": [{"name": "clip", "norm": 1.0}, {"name": "cast", "dtype": "bfloat16"}],
    "policy": {"name": "synchronous", "clients": 6, "timeout_s": None},
    "samples": {"prompt": "ROMEO: ", "tokens": 60},
}
SPEAKERS = ("Brutus", "Falstaff", "Gloucester", "Hamlet", "Iago", "Othello", "Richard III", "Romeo")
NOTES = (
    Note("before", "ROMEO: I'm not sure. I'm not sure if it's the right word, but I think it is.\nI'm not sure."),
    Note(
        "after",
        "ROMEO: My lord, I have no wit to speak thereof;\nThe night is come, and with it all my grief.\n\nJULIET: Good night.",
    ),
)


def record(
    *,
    clients: Sequence[str] = SPEAKERS,
    rounds: int = 20,
    cohort: int = 6,
    seed: int = 7,
    status: str = "finished",
    stale: bool = False,
    failing: float = 0.03,
    start: float = 3.9,
    floor: float = 2.9,
    notes: Sequence[Note] = NOTES,
    name: str = "shakespeare-lora",
    per_client: bool = True,
    accuracy: bool = True,
) -> Record:
    """A run of `rounds` rounds over `clients`, `cohort` of them a round."""
    draw, series, incidents, clock = random.Random(seed), list[Point](), list[Incident](), 2.0
    skill = {client: draw.gauss(0, 0.12) for client in clients}
    examples = {client: int(40 * math.exp(draw.gauss(0, 0.6))) + 4 for client in clients}

    def judged(number: int, work: str, after: int) -> None:
        loss = floor + (start - floor) * math.exp(-4 * after / max(rounds, 1)) + draw.gauss(0, 0.008)
        series.append(Point(number, work, None, "loss", loss, clock))
        if accuracy:
            series.append(Point(number, work, None, "accuracy", 1 / (1 + math.exp(loss - 2.6)), clock))

    judged(0, "baseline", 0)
    for number in range(rounds):
        base = floor + (start - floor) * math.exp(-4 * number / max(rounds, 1))
        losses = []
        for client in draw.sample(list(clients), min(cohort, len(clients))):
            spent = 0.4 + examples[client] / 60 * draw.uniform(0.9, 1.1)
            clock += spent
            if draw.random() < failing:
                why = draw.choice(["lost: no answer within the lease of 60 s", "not_finite: its loss is NaN after 7 steps"])
                incidents.append(Incident(number, "train", client, "failure", why, clock))
                continue
            losses.append(base + skill[client] + draw.gauss(0, 0.05))
            age = min(int(draw.expovariate(0.9)), 6) if stale else 0
            told = {"loss": losses[-1], "seconds": spent, "examples": examples[client], "steps": 12, "bytes_down": 1.84e6,
                    "bytes_up": 0.92e6, "age": age}  # fmt: skip
            series += [Point(number, "train", client, key, float(value), clock) for key, value in told.items()]
        if losses:
            series.append(Point(number, "train", None, "loss", sum(losses) / len(losses), clock))
            series.append(Point(number, "train", None, "heard", len(losses), clock))
        if per_client and (number % 5 == 4 or number == 0):
            for client in clients:
                loss = base + skill[client] + draw.gauss(0, 0.03)
                series.append(Point(number, "evaluate_clients", client, "loss", loss, clock))
        clock += 0.8
        judged(number, "evaluate", number + 1)
    return Record(
        id=f"{name}-{seed}", name=name, status=status, seed=seed, rounds=rounds if status == "finished" else 2 * rounds,
        config={**CONFIG, "name": name, "seed": seed, "rounds": rounds},
        versions={"python": "3.11.2", "atoll": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.19.1"},
        environment="Linux 6.1, 2 processors, 8.0 GB of memory", created="2026-03-01T09:30:00.000+00:00",
        started="2026-03-01T09:30:01.000+00:00", finished="2026-03-01T09:35:33.000+00:00" if status == "finished" else None,
        error="client Romeo failed (not_finite: its loss is NaN)." if status == "failed" else "", folder=f"runs/{name}-{seed}",
        series=tuple(series), incidents=tuple(incidents), notes=tuple(notes),
    )  # fmt: skip
