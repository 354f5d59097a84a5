"""A byte budget split over an update's tensors by importance, the codec of each chosen by measured rate and distortion.

Minimise sum_l s_l^2 D_l(c_l) over the codecs c_l of the tensors l, under sum_l R_l(c_l) <= budget (Shoham and Gersho 1988,
doi:10.1109/29.90373): D_l is what codec c_l loses of tensor l, squared, and grows with its RMS; s_l is how sensitive the model
is to it. Rates and distortions are measured on the tensor itself, on a sample where it is long; each tensor climbs the lower
convex hull of its (R, D) points, and the budget goes to whoever gains most for a byte. Tensors of one codec are encoded
together, each divided by its RMS.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from atoll import rng, tree
from atoll.errors import ConfigError, TreeError
from atoll.transforms.compress.coded import model_table, read_table, written_table
from atoll.transforms.compress.ecsq import ecsq
from atoll.transforms.compress.int8 import int8
from atoll.types import Assignment, Properties, Transform, Tree, Update
from atoll.wire.table import Table, table_of

TRAFFIC = {"bits": 1.0, "per": "bits"}
STEPS = (6.0, 4.0, 3.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.25)  # of ecsq, in RMS: from about 0.05 to 4 bits a value
_MARK = "layered/1="
_SAMPLE = 1 << 15  # entries of a tensor on which its rates and distortions are measured
_TENSOR_BYTES = 5  # its choice and its RMS


class Point(NamedTuple):
    """What one codec makes of one tensor."""

    codec: int
    size_bytes: float
    loss: float  # squared, times the sensitivity squared


def layered(bits: float = 2.0, sensitivity: Literal["equal", "relative"] = "equal") -> Transform[None]:
    """At most `bits` a value over all floating-point tensors, more for those that matter; what is not worth a byte is not sent.

    `sensitivity`: "equal" minimises the error of the update; "relative" that of each tensor against the RMS of its parameters.

    Raises:
        ConfigError: bits is not above 0, or another sensitivity.

    >>> from atoll.types import ClientId
    >>> values = {"large": torch.randn(4096), "small": 1e-3 * torch.randn(4096)}
    >>> sent, _ = layered(1.0).encode(Assignment(0, ClientId("a"), "", values, 0), {}, {}, Update(0, "a", "", values, 1.0, {}))
    >>> large, small = sent.tree["layered/1=choice"].tolist()  # codecs by their rate: little of what hardly counts
    >>> large > small
    True
    """
    if not bits > 0:
        raise ConfigError(f"layered bits = {bits}: must be above 0 bits a value")
    if sensitivity not in ("equal", "relative"):
        raise ConfigError(f"layered sensitivity = {sensitivity!r}: must be equal or relative")
    codecs = [*(ecsq(step=step) for step in STEPS), int8()]

    def encode(assignment: Assignment, broadcast: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        ours = {name: x for name, x in update.tree.items() if x.is_floating_point()}
        if not any(x.numel() for x in ours.values()):
            return update, {}
        table = table_of(ours)
        known = assignment is not None and model_table(assignment.tree) == table
        rms = {name: _rms(x) for name, x in ours.items()}
        weight = _sensitivities(sensitivity, ours, {} if assignment is None else assignment.tree)
        seed = 0 if assignment is None else assignment.seed
        budget = bits / 8 * table.numbers - _TENSOR_BYTES * len(ours)
        choice = _share_out([_points(x, rms[name], weight[name], codecs, seed) for name, x in ours.items()], budget)
        made: dict[str, Tensor] = {} if known else {_MARK + "table": written_table(table)}
        made[_MARK + "choice"] = torch.tensor(choice, dtype=torch.uint8)
        made[_MARK + "rms"] = torch.tensor([rms[name] for name in ours])
        for number, codec in enumerate(codecs, start=1):
            group = {name: x.float() / rms[name] for (name, x), c in zip(ours.items(), choice, strict=True) if c == number}
            made |= tree.put(_alone(codec, group, seed).tree, f"{_MARK}{number}:") if group else {}
        return update._replace(tree={**{name: x for name, x in update.tree.items() if name not in ours}, **made}), {}

    def decode(update: Update, like: Tree | None) -> Update:
        parts = tree.take(update.tree, _MARK)
        if not parts:
            return update
        table = read_table(parts.get("table"), like)
        groups = _groups(table, parts, len(codecs))
        found = {e.name: torch.zeros(e.shape, dtype=e.dtype) * scale.to(e.dtype) for e, scale in groups[0]}  # a NaN stays one
        for number, codec in enumerate(codecs, start=1):
            if not groups[number]:
                continue
            plain = {e.name: torch.empty(e.shape, device="meta") for e, _ in groups[number]}
            inner = update._replace(tree=tree.take(parts, f"{number}:"))
            assert codec.decode is not None
            made = codec.decode(inner, plain).tree
            tree.agree(plain, made)
            for entry, scale in groups[number]:
                found[entry.name] = (made[entry.name].float() * scale).to(entry.dtype)
        rest = {name: x for name, x in update.tree.items() if not name.startswith(_MARK)}
        return update._replace(tree={**rest, **{entry.name: found[entry.name] for entry in table.entries}})

    return Transform("layered", lambda w: None, lambda s: {}, encode, decode, lambda s, r: (r.tree, s), Properties(entropy=True))


def _groups(table: Table, parts: Tree, codecs: int) -> list[list[tuple[Any, Tensor]]]:
    """By codec, the entries that it encoded with the RMS of each; 0 is what was not sent."""
    choice, rms = parts.get("choice"), parts.get("rms")
    count = len(table.entries)
    right = choice is not None and rms is not None and choice.dtype == torch.uint8 and choice.shape == rms.shape == (count,)
    if not right or choice is None or rms is None or (count and int(choice.max()) > codecs):
        raise TreeError(f"a layered update should say a codec of {codecs} and an RMS for each of {count} tensors, and does not")
    found: list[list[tuple[Any, Tensor]]] = [[] for _ in range(codecs + 1)]
    for entry, number, scale in zip(table.entries, choice.tolist(), rms, strict=True):
        found[number].append((entry, scale))
    return found


def _alone(codec: Transform[Any], values: Tree, seed: int) -> Update:
    """Some tensors through one codec, which is told that the server knows their names and shapes."""
    at = Assignment(0, "", "", values, seed)  # type: ignore[arg-type]
    return codec.encode(at, {}, {}, Update(0, at.client, "", values, 1.0, {}))[0]


def _rms(x: Tensor) -> float:
    """Of a tensor, at most by rounding 0; NaN where it holds one, so that the server sees it."""
    return tree.norm({"": x}) / math.sqrt(max(x.numel(), 1))


def _sensitivities(kind: str, ours: Tree, sent: Tree) -> Mapping[str, float]:
    """By tensor; relative to the RMS of its parameters, but to a tenth of all tensors' at least (a new adapter's may be 0)."""
    if kind == "equal":
        return dict.fromkeys(ours, 1.0)
    own = {name: _rms(sent[name]) if name in sent else 0.0 for name in ours}
    floor = 0.1 * math.sqrt(sum(r * r for r in own.values()) / max(len(own), 1)) or 1.0
    return {name: 1.0 / max(r, floor) for name, r in own.items()}


def _points(x: Tensor, rms: float, weight: float, codecs: Sequence[Transform[Any]], seed: int) -> list[Point]:
    """Rate and distortion of a tensor under each codec; 0 is not to send it."""
    count = x.numel()
    energy = (weight * rms) ** 2 * count
    found = [Point(0, 0.0, energy)]
    if not energy > 0:
        return found if energy == 0 else [*found, Point(len(codecs), float(count), 0.0)]  # NaN: sent as it is
    flat = x.detach().reshape(-1).float()
    if count > _SAMPLE:
        flat = flat[torch.randint(count, (_SAMPLE,), generator=rng.generator(seed, "layered"))]
    unit = {"": flat / rms}
    for number, codec in enumerate(codecs, start=1):
        sent = _alone(codec, unit, seed)
        assert codec.decode is not None
        back = codec.decode(sent, unit).tree[""]
        share = float((back - unit[""]).square().mean())
        found.append(Point(number, tree.size_bytes(sent.tree) * count / len(flat), energy * share))
    return found


def _hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull: each step further buys less loss for a byte than the one before.

    >>> [p.codec for p in _hull([Point(0, 0, 10.0), Point(1, 1, 9.5), Point(2, 2, 4.0), Point(3, 4, 3.0)])]
    [0, 2, 3]
    """
    hull: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size_bytes, p.loss)):
        if hull and point.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-1], point) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _gain(a: Point, b: Point) -> float:
    return (a.loss - b.loss) / max(b.size_bytes - a.size_bytes, 1e-9)


def _share_out(points: Sequence[Sequence[Point]], budget_bytes: float) -> list[int]:
    """The codec of each tensor: the steps that gain most for a byte while they fit, then what else the rest pays for."""
    curves = [_hull(each) for each in points]
    at, left = [0] * len(curves), budget_bytes
    line = [(-_gain(*curve[:2]), i) for i, curve in enumerate(curves) if len(curve) > 1]
    heapq.heapify(line)
    while line:
        _, i = heapq.heappop(line)
        before, after = curves[i][at[i] : at[i] + 2]
        if after.size_bytes - before.size_bytes > left:
            continue  # this tensor stays; a smaller one may still fit
        left -= after.size_bytes - before.size_bytes
        at[i] += 1
        for a, b in itertools.pairwise(curves[i][at[i] : at[i] + 2]):
            heapq.heappush(line, (-_gain(a, b), i))
    chosen = [curve[place] for curve, place in zip(curves, at, strict=True)]
    for i in sorted(range(len(chosen)), key=lambda i: -chosen[i].loss):
        fits = [p for p in points[i] if p.size_bytes <= chosen[i].size_bytes + left and p.loss < chosen[i].loss]
        if fits:
            best = min(fits, key=lambda p: p.loss)
            left -= best.size_bytes - chosen[i].size_bytes
            chosen[i] = best
    return [point.codec for point in chosen]
