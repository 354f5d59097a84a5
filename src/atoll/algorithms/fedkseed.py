"""FedKSeed: full-parameter tuning by scalars alone (Qin et al. 2024, arXiv:2312.06353, Algorithm 1 and section 3.4).

    w = w0 - lr sum_j G_j z_j              j: one of K numbered random directions, which nobody sends
    client  g = (L(w + eps z_j) - L(w - eps z_j)) / (2 eps);  w -= lr g z_j;  h_j += g          tau times
    server  G += sum_k p_k h_k

Down go the entries of G that changed since the client last knew, or all K; up go tau pairs (j, g). Whoever has w0 and G has
w, to the bit (`local.directions`). Deviations: terms are rounded to a grid, about 2^-22 of a tensor's largest entry; w0 is, too.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from atoll import rng
from atoll.aggregators.mean import mean
from atoll.errors import ConfigError, TreeError
from atoll.local.binding import binding
from atoll.local.directions import Directions, Grid, add_, on_grids, values_of
from atoll.local.zeroth_order import INDEX, Recipe, patch, zeroth_order
from atoll.types import Algorithm, Batching, ClientId, Reduced, Request, Task, Tree, Update

# At most: all of G, and FedKSeed-Pro's directions; a slope and the number of its direction, 6 bytes a step.
TRAFFIC = {"train": {"down": 0, "up": 0, "down_per": {"candidates": 1, "steps": 0.5}, "up_per": {"steps": 1.5}}}
CLIP = 1000.0  # slopes count up to this in FedKSeed-Pro


class State(NamedTuple):
    """The scalars, the weights that they make, and what each client knows of them."""

    params: Tree  # float32 on the grid; buffers as they were
    steps: Mapping[str, float]  # of the grids
    base: int
    g: Tensor  # float32 (K,)
    round: int
    changed: Tensor  # int64 (K,): the last round that changed an entry; -1: none
    sent: Mapping[str, int]  # client -> the round in which it was last asked
    known: Mapping[str, int]  # client -> the round whose scalars it remembers
    size: Tensor  # float32 (K,): sums of |slope|, with `times` for FedKSeed-Pro
    times: Tensor


def fedkseed(
    task: Task,
    lr: float = 3e-7,
    eps: float = 5e-4,
    candidates: int = 4096,
    steps: int = 200,
    batch_size: int = 1,
    draw: Literal["gaussian", "rademacher"] = "gaussian",
    pro: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
) -> Algorithm[State]:
    """Tune all parameters without a gradient: scalars alone cross the network, the memory is that of inference.

    Args:
        task: its module's own parameters are w0, at the server and at every client.
        lr, eps: of a step, and of the difference. lr is the same in all rounds, since w is lr times a sum of scalars.
        candidates: K directions to choose from; G is 4 K bytes.
        steps: tau of each client and round, of `batch_size` examples each; all clients weigh the same if all have so many.
        draw: "gaussian" as in the paper; "rademacher" (+1 or -1) is drawn several times as fast.
        pro: FedKSeed-Pro: the server draws each client's directions, j with softmax(minmax(mean |clip(g_j, 1000)|)).
        precision: of the forward passes; a narrower model than float32 is tuned in float32 and cast.

    Raises:
        ConfigError: a value is out of range.

    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> fedkseed(regression(linear(3, 1)), lr=0.01, steps=20).local["train"].batching.steps
    20
    """
    _check(lr=lr, eps=eps, candidates=candidates, steps=steps)
    values_of(draw)
    batching = Batching("train", batch_size, steps=steps, shuffle=True)
    recipe = Recipe(task, Directions(candidates, seed, draw), lr, eps, batching, precision, pro)
    bound = binding(task.module)

    def init(w: Tree) -> State:
        grids, zeros = on_grids({name: w[name] for name in bound.params}), torch.zeros(candidates)
        kept = {**{name: grid.values for name, grid in grids.items()}, **{name: w[name] for name in bound.buffers}}
        never, sizes = torch.full((candidates,), -1), {name: grid.step for name, grid in grids.items()}
        return State(kept, sizes, recipe.base(grids), zeros, 0, never, {}, {}, zeros, zeros)

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        asked: dict[str, int] = {}

        def tree_for(client: ClientId) -> Tree:
            asked[client] = state.round
            since = state.changed > state.known[client] if client in state.known else None
            order = {"order": _drawn(state, client, seed, steps).to(INDEX)} if pro else {}
            return {**patch(state.g, since, state.base), **order}

        like = dict.fromkeys(("h", "size", "times") if pro else ("h",), state.g)
        reduced = yield Request(
            "train", clients, tree_for, mean("examples"), like=like, decode=lambda u: _dense(u, recipe), by_client=True
        )
        return _after(state, reduced, asked, recipe)

    def params(state: State) -> Tree:
        return {name: x.to(own.dtype) for name, own in bound.state().items() for x in (state.params[name],)}

    return Algorithm(init, round, params, {"train": zeroth_order(recipe)})


def replay(w0: Tree, g: Tensor, directions: Directions, lr: float) -> Tree:
    """The weights of who has the first ones and the scalars: a newcomer, or an auditor.

    Args:
        w0: the trained parameters as the federation began with them.
        g: float32 (K,), `State.g`.

    >>> w = replay({"w": torch.zeros(4)}, torch.tensor([0.0, 1.0]), Directions(2, draw="rademacher"), lr=0.5)
    >>> w["w"].abs().tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    grids = on_grids(w0)
    for j in g.nonzero()[:, 0].tolist():
        add_(grids, directions, j, (1, -lr * float(g[j])))
    return {name: grid.values.to(w0[name].dtype) for name, grid in grids.items()}


def _after(state: State, reduced: Reduced, asked: Mapping[str, int], recipe: Recipe) -> State:
    """G += h, and the weights and what the clients know with it."""
    sent = {**state.sent, **asked}
    # Who did not answer may have lost what it remembered, and is sent all the next time.
    known = {client: at for client, at in state.known.items() if client not in asked}
    known |= {client: sent[client] for client in reduced.clients}
    after = state._replace(round=state.round + 1, sent=sent, known=known)
    if not reduced.tree:
        return after
    g = state.g + reduced.tree["h"]
    moved = (g != state.g).nonzero()[:, 0].tolist()
    values = {name: x.clone() if name in state.steps else x for name, x in state.params.items()}
    grids = {name: Grid(values[name], step) for name, step in state.steps.items()}
    for j in moved:
        add_(grids, recipe.directions, j, (-1, -recipe.lr * float(state.g[j])), (1, -recipe.lr * float(g[j])))
    changed = state.changed.clone()
    changed[moved] = after.round
    after = after._replace(params=values, g=g, changed=changed)
    if "size" in reduced.tree:
        after = after._replace(size=state.size + reduced.tree["size"], times=state.times + reduced.tree["times"])
    return after


def _dense(update: Update, recipe: Recipe) -> Update:
    """The pairs of a client as vectors of K entries."""
    count, at, h = recipe.directions.candidates, update.tree.get("at"), update.tree.get("h")
    if at is None or h is None or len(update.tree) != 2 or at.dtype != INDEX or h.dtype != torch.float32:
        raise TreeError("an update of fedkseed is directions 'at' and their slopes 'h', float32; it came from another algorithm")
    most = recipe.batching.steps or 1
    if at.dim() != 1 or at.shape != h.shape or len(at) > most:
        raise TreeError(f"an update of fedkseed has {tuple(at.shape)} directions and {tuple(h.shape)} slopes; {most} at most")
    at = at.long()
    if len(at) and not 0 <= int(at.min()) <= int(at.max()) < count:
        raise TreeError(f"an update of fedkseed names a direction outside of 0 to {count - 1}")
    dense = {"h": torch.zeros(count).index_add_(0, at, h)}
    if recipe.each:
        dense["size"] = torch.zeros(count).index_add_(0, at, h.abs().clamp(max=CLIP))
        dense["times"] = torch.zeros(count).index_add_(0, at, torch.ones_like(h))
    return update._replace(tree=dense)


def _drawn(state: State, client: ClientId, seed: int, steps: int) -> Tensor:
    """FedKSeed-Pro's directions for one client, int64 (steps,). One that was never tried counts as of slope 0."""
    amplitude = (state.size / state.times.clamp(min=torch.finfo(torch.float32).tiny)).double()
    spread = amplitude.max() - amplitude.min()
    chances = torch.softmax((amplitude - amplitude.min()) / spread if spread > 0 else torch.zeros_like(amplitude), 0)
    return torch.multinomial(chances, steps, replacement=True, generator=rng.generator(seed, "pro", state.round, client))


def _check(lr: float, eps: float, candidates: int, steps: int) -> None:
    for name, value in (("lr", lr), ("eps", eps)):
        if not value > 0:
            raise ConfigError(f"fedkseed {name} = {value}: must be above 0")
    for name, count in (("candidates", candidates), ("steps", steps)):
        if count < 1:
            raise ConfigError(f"fedkseed {name} = {count}: must be 1 or more")
    if candidates > 2**15:
        raise ConfigError(f"fedkseed candidates = {candidates}: {2**15} is the limit, and 4096 serve as well as more")
