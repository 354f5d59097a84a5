"""FedKSeed's client half (Qin et al. 2024, arXiv:2312.06353, Algorithm 1): slopes along numbered directions, no gradient.

tau times: choose j;  g = (L(w + eps z_j) - L(w - eps z_j)) / (2 eps);  w -= lr g z_j;  send (j, g)

Nothing is kept for a backward pass, and no copy of the model is made (`local.directions`): the memory is that of
inference with the weights that are tuned, beside the module's own. The module is in evaluation mode, since both losses have to be
of one function: no dropout, and batch norm's statistics stay as they are. Of one direction that is chosen twice the sum
of its slopes is sent, unless the server wants each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError, TreeError
from atoll.local.binding import binding
from atoll.local.directions import Directions, Floats, Grids, Weights, sha256
from atoll.types import Assignment, Batch, Batching, Local, Seen, Task, Tree, Update

MEMORY = "fedkseed/g"  # what the client remembers: the scalars that it was last sent
INDEX = torch.int16  # in which directions' numbers are sent


class Recipe(NamedTuple):
    """What both sides know beforehand; a client with another is refused, since its scalars would mean something else."""

    task: Task
    directions: Directions
    lr: float
    eps: float
    batching: Batching
    precision: Literal["fp32", "bf16"] = "fp32"
    each: bool = False  # send every slope, and take the directions that the server names

    def base(self, start: Grids) -> int:
        """A fingerprint of w0 and of the numbers that turn scalars into weights."""
        held = sha256({name: grid.values for name, grid in start.items()})
        return _short(f"{held} {tuple(self.directions)} {self.lr!r}".encode())

    def level(self, g: Tensor) -> Floats:
        """The coefficients -lr g, float64 (count,), of scalars g, float32 (count,)."""
        return -self.lr * g.numpy().astype(np.float64)


class Carry(NamedTuple):
    """One client's steps so far."""

    g: Tensor  # float32 (count,): what was received and the slopes since
    order: list[int]  # directions still to be tried, the next one last
    taken: list[tuple[int, float]]  # (j, slope)
    losses: list[float]
    known: Tensor  # what was received
    memory: Tree


def zeroth_order(recipe: Recipe) -> Local[Carry]:
    """Slopes along random directions by two forward passes each; what FedKSeed asks of its clients.

    The assignment holds what `patch` gives, the update "at" (m,) and "h", float32 (m,): directions and their slopes.

    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> recipe = Recipe(regression(linear(3, 1)), Directions(16), 0.1, 1e-3, Batching("train", 1, steps=5, shuffle=True))
    >>> zeroth_order(recipe).payload
    'scalars'
    """
    task, bound = recipe.task, binding(recipe.task.module)
    held: list[tuple[Weights, int]] = []  # of this process, and their base: all clients here use one copy in turn
    device = next(task.module.parameters()).device

    def begun() -> tuple[Weights, int]:
        held.clear()  # freed before it is made again
        state = bound.state()
        weights = Weights({name: state[name] for name in bound.params}, recipe.directions)
        return weights, recipe.base(weights.start())

    def at(g: Tensor) -> Weights:
        weights = held[0][0]
        weights.at(recipe.level(g))
        bound.bind(weights.params, {name: x for name, x in bound.state().items() if name in bound.buffers})
        task.module.eval()
        return weights

    def init(assignment: Assignment, memory: Tree) -> Carry:
        if not held or held[0][1] != int(assignment.tree["check"][0]):  # the first one here, or the module has been changed
            held.append(begun())
        known = patched(assignment.tree, memory.get(MEMORY), recipe.directions.candidates, held[0][1])
        at(known)
        steps = recipe.batching.steps or 1
        if "order" in assignment.tree:
            order = assignment.tree["order"].tolist()
        else:
            drawn = torch.randint(recipe.directions.candidates, (steps,), generator=rng.generator(assignment.seed, "directions"))
            order = drawn.tolist()
        return Carry(known.clone(), order[::-1], [], [], known, memory)

    def step(carry: Carry, batch: Batch) -> Carry:
        j = carry.order.pop()

        def loss() -> float:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16) if recipe.precision == "bf16" else nullcontext():
                return float(task.loss(task.forward(task.module, batch), batch))

        def descended(above: float, below: float) -> float:
            carry.losses.append((above + below) / 2)
            slope = float(np.float32((above - below) / (2 * recipe.eps)))
            carry.taken.append((j, slope))
            if np.isfinite(slope):  # else the server is told, and the weights stay where they are
                carry.g[j] += slope
            return -recipe.lr * float(carry.g[j])

        at(carry.g).try_out(j, recipe.eps, loss, descended)
        return carry

    def final(assignment: Assignment, carry: Carry, seen: Seen) -> tuple[Update, Tree]:
        pairs = carry.taken if recipe.each else list(_summed(carry.taken).items())
        payload = {
            "at": torch.tensor([j for j, _ in pairs], dtype=INDEX),
            "h": torch.tensor([slope for _, slope in pairs], dtype=torch.float32),
        }
        metrics = {"loss": float(np.mean(carry.losses))}
        update = Update(assignment.round, assignment.client, assignment.work, payload, float(seen.examples), metrics)
        return update, {**carry.memory, MEMORY: carry.known}

    return Local(init, step, final, recipe.batching, payload="scalars")


def patch(g: Tensor, since: Tensor | None, base: int) -> Tree:
    """What brings a client to `g`, float32 (count,): all of it, or only what changed, whichever is shorter.

    `since` (count,) bool: what may differ from what the client remembers; None: it remembers nothing, and begins from zeros.

    >>> sent = patch(torch.tensor([0.0, 0.5, 0.0, 0.0]), None, 7)
    >>> sent["at"].tolist(), patched(sent, None, 4, 7).tolist()
    ([1], [0.0, 0.5, 0.0, 0.0])
    """
    check = torch.tensor([base, check_of(g)])
    at = (g != 0 if since is None else since).nonzero()[:, 0]
    if len(at) * (4 + INDEX.itemsize) >= 4 * len(g):
        return {"check": check, "g": g}
    return {"check": check, "at": at.to(INDEX), "g" if since is None else "new": g[at]}


def patched(sent: Tree, remembered: Tensor | None, count: int, base: int) -> Tensor:
    """The coefficients that the server means, float32 (count,).

    Raises:
        ConfigError: the server's w0, lr or directions are not this client's.
        TreeError: what the client remembers is not what the server builds on; the server then sends all the next time.
    """
    if int(sent["check"][0]) != base:
        raise ConfigError("the server's first weights, lr, candidates, draw or seed are not this client's: use one job file")
    if "at" not in sent:
        g = sent["g"].clone()
    else:
        remembered = torch.zeros(count) if "g" in sent else remembered
        if remembered is None or len(remembered) != count:
            raise TreeError("the server builds on scalars that this client does not remember; it will be sent all of them")
        g = remembered.clone()
        g[sent["at"].long()] = sent["g"] if "g" in sent else sent["new"]
    if len(g) != count or check_of(g) != int(sent["check"][1]):
        raise TreeError("this client's scalars are not those that the server builds on; it will be sent all of them")
    return g


def check_of(g: Tensor) -> int:
    """A fingerprint of scalars, float32 (count,): 63 bits."""
    return _short((g + 0.0).contiguous().numpy().tobytes())


def _short(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


def _summed(taken: list[tuple[int, float]]) -> Mapping[int, float]:
    sums: dict[int, float] = {}
    for j, slope in taken:
        sums[j] = sums.get(j, 0.0) + slope
    return sums
