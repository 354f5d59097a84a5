"""Every rule of composition, by name: what is refused, with what to do instead, and what is not."""

from __future__ import annotations

import itertools

import pytest

from atoll.transforms.compose import Link, broadcast_clash, clashes
from atoll.transforms.pipe import links_of
from atoll.types import Properties, Transform

KINDS = {
    "clip": {"bounds_norm"},
    "cast": {"linear"},
    "int8": set(),
    "top_k": set(),
    "random_k": {"linear", "shared", "unbiased"},
    "feedback": {"feedback", "memory"},
    "residual": {"feedback", "memory"},
    "zstd": {"entropy"},
    "xor": {"reference"},
}


def links(*names: str) -> list[Link]:
    return [Link(name, frozenset(KINDS[name])) for name in names]


@pytest.mark.parametrize(
    ("names", "at", "says"),
    [
        ("cast cast", 1, "'cast' is attached twice; keep one"),
        ("clip cast clip", 2, "'clip' is attached twice; keep one"),
        ("int8 clip", 1, "'clip' bounds the norm of what 'int8' has encoded; put 'clip' first"),
        ("cast top_k clip", 2, "'clip' bounds the norm of what 'top_k' has encoded; put 'clip' first"),
        (
            "zstd int8",
            1,
            "'int8' comes after 'zstd', whose output is entropy-coded bytes with nothing left to encode; put 'int8' before",
        ),
        ("zstd cast", 1, "put 'cast' before 'zstd'"),
        ("clip feedback", 1, "'feedback' adds what it left out before, after 'clip' has bounded the norm; put 'clip' inside it"),
        ("feedback residual", 1, "'residual' would keep a second residual beside that of 'feedback'"),
        (
            "int8 feedback",
            1,
            "'feedback' comes after 'int8', which sends other entries each round than those owed; put 'int8' inside",
        ),
        ("random_k feedback", 1, "'feedback' comes after 'random_k', which sends other entries each round"),
        (
            "xor",
            0,
            "'xor' encodes against what both ends hold, which is so of the model and not of an update; use it for the broadcast",
        ),
        (
            "int8 random_k",
            1,
            "'random_k' is undone after the updates are summed, and 'int8' before; put 'random_k' before 'int8'",
        ),
        ("feedback random_k", 1, "'random_k' is undone at the server alone, so that 'feedback' can't know what it lost"),
    ],
)
def test_what_clashes_is_named_with_what_to_do(names: str, at: int, says: str) -> None:
    found = list(clashes(links(*names.split())))
    assert [(clash.at, says in clash.text) for clash in found] == [(at, True)], found


TOGETHER = [
    *("", "clip cast", "clip int8", "clip top_k int8 zstd", "cast feedback", "clip random_k", "random_k int8"),
    *("feedback int8", "top_k int8", "feedback clip", "random_k zstd", *sorted(KINDS.keys() - {"xor"})),
]


@pytest.mark.parametrize("names", TOGETHER)
def test_what_goes_together_is_let_through(names: str) -> None:
    assert list(clashes(links(*names.split()))) == []


@pytest.mark.parametrize("payload", ["composite", "encoded"])
def test_a_norm_is_that_of_an_update_alone(payload: str) -> None:
    (clash,) = clashes(links("clip"), payload=payload)
    assert clash.at == 0
    assert "'clip' bounds the norm of an update, but this algorithm's clients send more than an update" in clash.text
    assert "leave it out, or use an algorithm such as fedavg" in clash.text
    assert list(clashes(links("int8"), payload=payload)) == []


def test_scalars_are_left_alone() -> None:
    found = [clash.text for clash in clashes(links("clip", "int8"), payload="scalars")]
    rest = "works on a model's update, but this algorithm's clients send a few scalars; leave it out"
    assert found == [f"'clip' {rest}", f"'int8' {rest}"]


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"xor"}))
def test_behind_a_secure_sum_only_sums_are_seen(name: str) -> None:
    found = list(clashes(links(name), secure_sum=True))
    assert bool(found) == (name not in {"clip", "cast", "random_k"})
    for clash in found:
        assert f"{name!r} is not linear, and a secure sum shows the server only the sum of what clients send" in clash.text
        assert "use 'cast', 'random_k' or 'sketch' instead, or leave the secure sum out" in clash.text


def test_all_clashes_come_at_once_in_the_order_of_the_links() -> None:
    found = [clash.at for clash in clashes(links("zstd", "int8", "clip", "zstd", "xor"))]
    assert sorted(set(found)) == [1, 2, 3, 4]


@pytest.mark.parametrize("names", list(itertools.permutations(KINDS, 2)))
def test_a_rule_reads_properties_and_not_names(names: tuple[str, str]) -> None:
    """Another name changes nothing but the name in the sentence."""
    plain = [clash.text for clash in clashes(links(*names))]
    renamed = [Link(f"{link.name}*", link.properties) for link in links(*names)]
    for clash, text in zip(clashes(renamed), plain, strict=True):
        assert clash.text.replace("*'", "'").replace("*", "") == text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("clip", "bounds a norm"),
        ("feedback", "keeps a residual"),
        ("random_k", "decodes a sum of updates"),
        ("int8", None),
        ("xor", None),
    ],
)
def test_a_broadcast_is_encoded_by_what_decodes_by_itself(name: str, says: str | None) -> None:
    found = broadcast_clash(*links(name))
    assert (found is None) == (says is None)
    if says is not None and found is not None:
        assert f"{name!r} is no codec of a model, as it {says}" in found
        assert "use one such as int8 or xor" in found
    assert "remembers" in str(broadcast_clash(Link("own", frozenset({"memory"}))))


def test_a_transform_is_described_with_what_it_is_made_of() -> None:
    def made(name: str, *within: Transform[None], **properties: bool) -> Transform[None]:
        has = Properties(**properties)
        return Transform(
            name, lambda w: None, lambda s: {}, lambda a, b, m, u: (u, m), None, lambda s, r: (r.tree, s), has, links=within
        )

    inner = made("clip", bounds_norm=True), made("int8")
    names = [
        [link.name for link in links_of([each])]
        for each in (made("chain", *inner), made("owed", *inner, feedback=True, memory=True))
    ]
    assert names == [["clip", "int8"], ["owed", "clip", "int8"]], "a chain is only what it chains, a residual is one more"
    assert links_of([inner[0]])[0].properties == {"bounds_norm"}


def test_feedback_around_an_entropy_coder_composes() -> None:
    from atoll.transforms.compress.ecsq import ecsq
    from atoll.transforms.compress.feedback import feedback
    from atoll.transforms.compress.int8 import int8
    from atoll.transforms.pipe import links_of

    around = feedback([ecsq(step=4.0)], when="always")
    assert not list(clashes(links_of([around])))
    assert [clash.at for clash in clashes(links_of([around, int8()]))] == [2]  # but nothing follows it


def test_a_sketch_owes_at_the_server_and_may_follow_a_bound() -> None:
    from atoll.transforms.chain import chain
    from atoll.transforms.clip import clip
    from atoll.transforms.compress.cast import cast
    from atoll.transforms.compress.sketch import sketch
    from atoll.transforms.pipe import links_of

    assert not list(clashes(links_of([clip(1.0), sketch(), cast("bf16")]), secure_sum=True))
    assert not list(clashes(links_of([chain("z", [sketch(), cast("bf16")])])))
