"""What each codec costs and loses: bits a value on frames, error, and speed of one thread.

On a real pseudo-gradient (a 636k-parameter character transformer after 40 steps of AdamW on Shakespeare's speakers) and, for
speed, on 10 million normal floats. NMSE = |decoded - x|^2 / |x|^2. GB/s are of float32 input, the median of five.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from results import publish, verdict

from atoll import tree
from atoll.data.characters import characters
from atoll.data.shakespeare import shakespeare
from atoll.data.text import tokenise
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.models.transformer import transformer
from atoll.round import work
from atoll.tasks.custom import custom
from atoll.transforms.compress.cast import cast
from atoll.transforms.compress.ecsq import ecsq
from atoll.transforms.compress.eden import eden
from atoll.transforms.compress.few_bits import few_bits
from atoll.transforms.compress.int4 import int4
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.layered import layered
from atoll.transforms.compress.powersgd import powersgd
from atoll.transforms.compress.sign import sign
from atoll.transforms.compress.ternary import ternary
from atoll.transforms.compress.top_k import top_k
from atoll.types import Assignment, ClientId, Transform, Tree, Update
from atoll.wire import frame

ENTRIES, REPEATS = 10_000_000, 5


class Way(NamedTuple):
    """A codec, and what is asked of it."""

    codec: Callable[[], Transform[Any]]
    nmse: float | None = None  # at most, on the pseudo-gradient
    bits: float | None = None  # at most
    encode: float | None = None  # GB/s, at least


WAYS: Mapping[str, Way] = {
    "cast bf16": Way(lambda: cast("bf16")),
    "int8": Way(int8, bits=8.2, encode=2.0),
    "int8, stochastic": Way(lambda: int8(rounding="stochastic")),
    "int4": Way(int4),
    "ecsq, 0.25 rms": Way(lambda: ecsq(step=0.25)),
    "ecsq, 1 rms": Way(lambda: ecsq(step=1.0), nmse=0.09, bits=2.1),
    "ecsq, 2 rms": Way(lambda: ecsq(step=2.0)),
    "ecsq, 1 rms, dither": Way(lambda: ecsq(step=1.0, dither=True)),
    "layered, 2.1 bits": Way(lambda: layered(2.1), nmse=0.09, bits=2.1),
    "layered, 0.5 bits": Way(lambda: layered(0.5)),
    "EDEN, 4 bits": Way(lambda: eden(bits=4)),
    "EDEN, 2 bits": Way(lambda: eden(bits=2)),
    "EDEN, 1 bit": Way(lambda: eden(bits=1)),
    "ternary": Way(ternary),
    "sign": Way(sign),
    "PowerSGD, rank 4": Way(lambda: powersgd(rank=4)),
    "top-k 1 %": Way(lambda: top_k(0.01), encode=1.0),
    "top-k 1 %, exact": Way(lambda: top_k(0.01, threshold="exact")),
    "few bits (2)": Way(lambda: few_bits(2)),
}


def pseudo_gradient() -> Tree:
    """What one client's 40 steps change of a character transformer."""
    texts = shakespeare(clients=4, test_fraction=0.0)
    alphabet = characters(texts)
    blocks = tokenise(texts, alphabet, 128)
    module = transformer(vocabulary=alphabet.vocab_size, width=128, layers=3, heads=4, context=128)

    def loss(logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), batch["labels"][:, 1:].reshape(-1))

    task = custom(module, loss, forward=lambda m, batch: m(batch["input_ids"]))
    local = adamw(task, lr=1e-3, batch_size=16, steps=40)
    client = next(iter(blocks.clients))
    start = tree.pack(binding(module).state())
    answer, _ = work(Assignment(0, client, "train", start, 0), local, blocks.clients[client]["train"], {})
    assert isinstance(answer, Update), answer
    return tree.pack(answer.tree)


def coded(codec: Transform[Any], values: Tree) -> tuple[Update, Update, float, float]:
    """(encoded, decoded, seconds to encode, seconds to decode)."""
    update = Update(0, ClientId("client"), "train", values, 1.0, {})
    started = time.perf_counter()
    sent, _ = codec.encode(Assignment(0, update.client, "train", values, 7), codec.broadcast(codec.init(values)), {}, update)
    encoded = time.perf_counter()
    back = sent if codec.decode is None else codec.decode(sent, values)
    return sent, back, encoded - started, time.perf_counter() - encoded


def entropy_bits(values: Tree, step: float) -> float:
    """Of the symbols of a uniform quantiser, bits a value: what an entropy coder can't go below."""
    x = torch.cat([v.reshape(-1) for v in values.values()])
    symbols = (x / (step * x.square().mean().sqrt())).round()
    p = torch.bincount((symbols - symbols.min()).long()).double().clamp_min(1e-300) / len(x)
    return float(-(p * p.log2()).sum())


def row(name: str, way: Way, real: Tree, normal: Tree) -> dict[str, Any]:
    """One codec, on both."""
    codec = way.codec()
    sent, back, _, _ = coded(codec, real)
    count, length = sum(x.numel() for x in real.values()), tree.norm(real) ** 2
    nmse = tree.norm(tree.sub(tree.map(torch.Tensor.float, back.tree), real)) ** 2 / length
    bits = frame.size(sent).total * 8 / count
    took = [coded(codec, normal)[2:] for _ in range(REPEATS)]
    encode, decode = (ENTRIES * 4e-9 / statistics.median(each) for each in zip(*took, strict=True))
    told = {"codec": name, "bits a value": round(bits, 3), "NMSE": float(f"{nmse:.3g}")}
    told |= {"encode GB/s": round(encode, 2), "decode GB/s": None if codec.decode is None else round(decode, 2)}
    asked = []
    if way.nmse is not None and way.bits is not None:
        met = "met" if nmse <= way.nmse and bits <= way.bits * 1.005 else "missed"
        asked.append(f"NMSE <= {way.nmse:g} at {way.bits:g} bits: {met}")
    if way.encode is not None:
        asked.append(f"encode >= {way.encode:g} GB/s: {verdict(encode, at_least=way.encode)}")
    if name == "ecsq, 1 rms":
        payload = frame.size(sent).payload * 8 / count
        least = entropy_bits(real, 1.0)
        asked.append(f"rANS within 1 % of the entropy: {payload / least - 1:+.2%}, {verdict(payload / least, at_most=1.01)}")
    return told | {"asked": "; ".join(asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of codecs that begin so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    real, draw = pseudo_gradient(), torch.Generator().manual_seed(0)
    normal = tree.pack({"x": torch.randn(2500, ENTRIES // 2500, generator=draw)})
    rows = [row(name, way, real, normal) for name, way in WAYS.items() if name.startswith(arguments.only)]
    publish("codec_frontier", rows, f"{sum(x.numel() for x in real.values()):,} values of a real update; speed on {ENTRIES:,}")


if __name__ == "__main__":
    main()
