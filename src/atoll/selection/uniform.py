"""Uniform sampling without replacement: the candidates as the driver gives them (arXiv:1602.05629, Algorithm 1)."""

from __future__ import annotations

from atoll.selection.rule import Call, Chosen, Selection, Told


def uniform() -> Selection[tuple[()]]:
    """Every candidate alike, as without a rule (McMahan et al. 2017, arXiv:1602.05629).

    >>> uniform().order((), Call(0, ["b", "a"], 1)).clients
    ['b', 'a']
    """

    def order(state: tuple[()], call: Call) -> Chosen[tuple[()]]:
        return Chosen(call.candidates, state)

    def observe(state: tuple[()], told: Told) -> tuple[()]:
        return state

    return Selection("uniform", lambda: (), order, observe)
