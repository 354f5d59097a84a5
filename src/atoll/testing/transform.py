"""Laws of a transform: it keeps what is not its own, promises no more than it holds, and works in a real round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.algorithms.fedavg import fedavg
from atoll.data.examples import Tensors
from atoll.engines.serial import serial
from atoll.local.binding import binding
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import Policy
from atoll.result import Recorder
from atoll.round import RunState, Shell, run
from atoll.store import state as kept
from atoll.store.journal import Ephemeral
from atoll.store.memories import Kept
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits
from atoll.transforms.broadcast import with_broadcast
from atoll.transforms.pipe import pipe
from atoll.types import Assignment, ClientId, Reduced, Transform, Tree, Update

SHAPES: dict[str, tuple[int, ...]] = {"w": (7, 5), "b": (5,), "scalar": (), "empty": (0, 3)}


def check_transform(transform: Transform[Any], tolerance: float = 1e-5, error: float | None = None) -> None:
    """Raise AssertionError where a law does not hold.

    `tolerance`: relative, on what should be equal up to rounding (2^-7 for a 16-bit codec). `error`: if given, what
    comes out at the server of one update differs from what went in by this much at most, relative to its norm.

    >>> from atoll.transforms.compress.cast import cast
    >>> check_transform(cast("bf16"), tolerance=2**-7, error=2**-8)
    """
    assert transform.name, "a transform has a name; it marks its corner of the client's memory"
    assert "/" not in transform.name, f"{transform.name!r}: a slash would reach into another's memory"
    _check_update(transform)
    _check_memory(transform)
    _check_state(transform)
    _check_finish(transform)
    _check_bad_values(transform)
    if error is not None:
        _check_error(transform, error)
    if transform.properties.linear:
        _check_linear(transform, tolerance)
    if transform.properties.unbiased:
        _check_unbiased(transform)
    if transform.properties.bounds_norm:
        _check_bound(transform, tolerance)
    _check_rounds(transform)


def update_of(seed: int = 0, scale: float = 1.0, flat: bool = False) -> Update:
    """An update with a matrix, a vector, a 0-d and an empty tensor.

    >>> sorted(update_of().tree)
    ['b', 'empty', 'scalar', 'w']
    """
    draw = torch.Generator().manual_seed(seed)
    sent: Tree = {name: scale * torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    return Update(3, ClientId("north"), "train", tree.pack(sent) if flat else sent, 8.0, {"loss": 0.5})


def _encode(
    transform: Transform[Any], update: Update, memory: Tree | None = None, seed: int = 0, state: Any = None
) -> tuple[Update, Tree]:
    broadcast = transform.broadcast(transform.init(tree.zeros(update.tree)) if state is None else state)
    assignment = Assignment(update.round, update.client, update.work, tree.zeros(update.tree), seed)
    return transform.encode(assignment, broadcast, memory or {}, update)


def _server(transform: Transform[Any], encoded: Sequence[Update]) -> Tree:
    """What the algorithm sees of encoded updates, averaged uniformly."""
    return _finished(transform, encoded, transform.init({name: torch.zeros(shape) for name, shape in SHAPES.items()}))[0]


def _finished(transform: Transform[Any], encoded: Sequence[Update], state: Any) -> tuple[Tree, Any]:
    reduce, like = mean("uniform"), {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    acc = reduce.init()
    for update in encoded:
        acc = reduce.add(acc, transform.decode(update, like) if transform.decode else update)
    reduced = Reduced(reduce.finish(acc), [u.client for u in encoded], {})
    finished, after = transform.finish(state, reduced)
    return {name: x.clone() for name, x in finished.items()}, after


def _check_update(transform: Transform[Any]) -> None:
    for flat in (False, True):
        given, same = update_of(flat=flat), update_of(flat=flat)
        sent, _ = _encode(transform, given)
        assert same_bits(dict(given.tree), dict(same.tree)), "encode wrote to the update it was given"
        assert (sent.round, sent.client, sent.work) == (given.round, given.client, given.work), "the update lost its place"
        assert math.isfinite(sent.weight), f"weight {sent.weight}"
        assert sent.weight >= 0, f"weight {sent.weight}"
        assert given.metrics.items() <= sent.metrics.items(), "encode lost the metrics of the client's work"
        again, _ = _encode(transform, update_of(flat=flat))
        assert same_bits(dict(sent.tree), dict(again.tree)), "encode draws randomness that is not the assignment's seed"
        out = _server(transform, [sent])
        assert {n: tuple(x.shape) for n, x in out.items()} == SHAPES, "the server gets other names or shapes than were sent"


def _check_memory(transform: Transform[Any]) -> None:
    memory: Tree = {}
    for seed in range(3):
        before = {name: x.clone() for name, x in memory.items()}
        _, after = _encode(transform, update_of(seed), memory, seed)
        assert same_bits(dict(memory), before), "encode wrote to the memory it was given"
        assert transform.properties.memory or not after, "it remembers something, and its properties say memory=False"
        memory = after
    assert bool(memory) == transform.properties.memory, "it remembers nothing, and its properties say memory=True"


def _check_state(transform: Transform[Any]) -> None:
    state = transform.init({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    with TemporaryDirectory() as folder:
        kept.save({"state": state}, Path(folder) / "state")
        again = kept.load({"state": state}, Path(folder) / "state")["state"]
    a, b = transform.broadcast(state), transform.broadcast(again)
    assert same_bits(dict(a), dict(b)), "a state read from a checkpoint broadcasts something else"


def _check_finish(transform: Transform[Any]) -> None:
    """What the server makes of two rounds: again from the first state, and from a checkpoint between them."""
    like, reduce = {name: torch.zeros(shape) for name, shape in SHAPES.items()}, mean("uniform")

    def heard(state: Any, seed: int) -> tuple[Tree, Any]:
        update = update_of(seed)
        assignment = Assignment(update.round, update.client, update.work, tree.zeros(update.tree), seed)
        update, _ = transform.encode(assignment, transform.broadcast(state), {}, update)
        update = transform.decode(update, like) if transform.decode else update
        finished, state = transform.finish(state, Reduced(reduce.finish(reduce.add(reduce.init(), update)), [update.client], {}))
        return {name: x.clone() for name, x in finished.items()}, state

    start = transform.init({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    first, after = heard(start, 0)
    with TemporaryDirectory() as folder:
        kept.save({"state": after}, Path(folder) / "state")
        again = kept.load({"state": after}, Path(folder) / "state")["state"]
    second, _ = heard(after, 1)
    assert same_bits(heard(start, 0)[0], first), "finish wrote to the state that it was given"
    assert same_bits(heard(again, 1)[0], second), "a state read from a checkpoint finishes otherwise"


def _check_bad_values(transform: Transform[Any]) -> None:
    """NaN may be refused where it is met or reach the server as NaN, so that the driver refuses it; never be hidden."""
    given = update_of()
    given.tree["w"][0, 0] = float("nan")
    try:
        sent, _ = _encode(transform, given)
        out = _server(transform, [sent])  # where it is looked at: a codec's bytes are always finite
    except Exception:  # a refusal of any kind will do: the client's answer becomes a Failure
        return
    metrics = all(value == value for value in sent.metrics.values())
    assert not (tree.finite(out) and metrics), "a NaN was encoded as if it were a number"


def _check_error(transform: Transform[Any], error: float) -> None:
    for scale in (1e-3, 1.0, 1e3):
        given = update_of(1, scale)
        out = _server(transform, [_encode(transform, given)[0]])
        distance, length = tree.norm(tree.sub(out, given.tree)), tree.norm(given.tree)
        assert distance <= error * length * (1 + 1e-6), f"error {distance / length:.3g} of the norm, above {error:.3g}"


def _check_linear(transform: Transform[Any], tolerance: float) -> None:
    """A secure sum adds what clients send: that must be what one client would send of the sum."""
    assert transform.decode is None, "linear=True, but the server decodes each update, which a secure sum never shows it"
    a, b = update_of(3), update_of(4)
    both = a._replace(tree=tree.add(a.tree, b.tree))
    sent = [_encode(transform, each, seed=seed)[0].tree for seed, each in enumerate((a, b, both))]
    for name, x in sent[2].items():
        summed = sent[0][name].double() + sent[1][name].double()
        torch.testing.assert_close(x.double(), summed, rtol=tolerance, atol=tolerance, msg=lambda m: f"linear=True: {m}")


def _check_unbiased(transform: Transform[Any], draws: int = 400) -> None:
    given, seen = update_of(2), list[Tree]()
    state = transform.init(tree.zeros(given.tree))
    for seed in range(draws):  # of one round each: what all clients of a round share is drawn anew
        out, state = _finished(transform, [_encode(transform, given, seed=seed, state=state)[0]], state)
        seen.append(out)
    for name in ("w", "b"):
        outs = torch.stack([out[name] for out in seen])
        off = (outs.mean(0) - given.tree[name]).abs()
        allowed = 6 * outs.std(0) / math.sqrt(draws) + 1e-4 * given.tree[name].abs()
        assert bool((off <= allowed).all()), f"unbiased=True, but the mean of {draws} encodings of {name!r} is off"


def _check_bound(transform: Transform[Any], tolerance: float) -> None:
    lengths = [tree.norm(_server(transform, [_encode(transform, update_of(1, scale))[0]])) for scale in (1e4, 1e8, 1e25)]
    for length in lengths[1:]:
        assert math.isclose(length, lengths[0], rel_tol=max(tolerance, 1e-5)), f"bounds_norm=True, but norms grow: {lengths}"
    small, _ = _encode(transform, update_of(1, 1e-12))
    assert tree.norm(_server(transform, [small])) <= lengths[0] * (1 + tolerance), "a short update came out longer"


def _check_rounds(transform: Transform[Any]) -> None:
    """Two rounds of FedAvg with the transform attached: nobody fails, and the same rounds give the same bits."""
    draw = torch.Generator().manual_seed(0)
    clients = {
        ClientId(name): {"train": Tensors({"x": torch.randn(6, 4, generator=draw), "y": torch.arange(6) % 3})} for name in "ab"
    }
    results = []
    for _ in range(2):
        task = classification(mlp(4, [5], 3))
        trained = fedavg(sgd(task, batch_size=3))
        algorithm = with_broadcast(trained, transform) if transform.properties.reference else pipe(trained, transform)
        memories = Kept()
        shell = Shell(serial(algorithm.local, clients, memories), Ephemeral(), Recorder())
        state = RunState(0, algorithm.init(binding(task.module).state()))
        for after in run(state, algorithm, Policy(min_updates=2), list(clients), 2, 0, shell):
            state = after
        results.append({name: x.detach().clone() for name, x in algorithm.params(state.algorithm).items()})
        names = [name for client in clients for name in memories.get(client)]
        corner = "broadcast" if transform.properties.reference else transform.name
        assert all(name.startswith(f"~{corner}/") for name in names), f"memory outside its corner: {names}"
    assert tree.finite(results[0]), "two rounds of training end in NaN"
    assert same_bits(*results), "the same two rounds give other bits"
