"""Killed at any moment, a run goes on where it was: no answer that was accepted is lost, none is counted twice.

A child process works through rounds, saying aloud what has been made safe; it is killed at a random moment, and the
next child must find all of it. Its sums are of whole numbers, so that the end is known.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atoll.store.runs import Store
from atoll.types import ClientId

ROUNDS, CLIENTS = 40, 4

NURSERY = """
import os, sys, torch
from atoll.store.run import Run
from atoll.store.runs import Store
from atoll.types import Event, Update

torch.set_num_threads(1)
FOLDER, ROUNDS, CLIENTS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
LIKE = {"w": torch.zeros(2000, dtype=torch.float64), "updates": 0}

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece, whoever else writes

def answer(run, round, client, number, memory, state):
    before = memory["rounds"].item() if memory else 0
    assert before == round, f"{client} remembers {before} rounds in round {round}"
    update = Update(round, client, "train", {"w": state["w"] * 0 + before + number}, 1.0, {"loss": float(round)})
    run.memories.propose(client, round, "train", {"rounds": torch.tensor(before + 1), "pad": torch.zeros(500)})
    run.journal.accept(update)
    say("accepted", round, number)
    run.memories.commit(client, round, "train")
    return update

def work():
    with Store(FOLDER) as store, store.open("last") as run:
        round, state = run.latest(LIKE) or (0, LIKE)
        say("resumed", round)
        while round < ROUNDS:
            run.journal.begin(round)
            logged = list(run.journal.accepted(round))
            say("replayed", round, len(logged))
            total = state["w"].clone()
            for number in range(CLIENTS):
                client = f"c{number}"
                memory = run.memories.get(client)
                update = logged[number] if number < len(logged) else answer(run, round, client, number, memory, state)
                assert update.client == client, (update.client, client)
                remembered = run.memories.get(client)["rounds"].item()
                assert remembered == round + 1, f"{client} remembers {remembered} rounds after round {round}"
                run.sink.emit(Event("update", round, "train", client, update.metrics))
                total += update.tree["w"]
            run.sink.emit(Event("round", round))
            state = {"w": total, "updates": state["updates"] + CLIENTS}
            round += 1
            run.checkpoint(round, state)
            say("checkpointed", round)
        run.finish("finished")
        say("done")

for _ in sys.stdin:  # one child a line: torch is imported once
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
    say("born", child)
    say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def live(nursery: subprocess.Popen[str], lines: int, delay_s: float) -> list[tuple[str, int]]:
    """Let one child work until it has said so many lines and a moment more; what was said until it was dead."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    print("go", file=nursery.stdin, flush=True)
    said: list[tuple[str, int]] = []
    child = 0
    for line in nursery.stdout:
        word, *numbers = line.split()
        said.append((word, int(numbers[-1]) if numbers else 0))
        if word == "born":
            child = said[-1][1]
        if word == "ended":
            break
        if child and len(said) == max(lines, said.index(("born", child)) + 1):
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("way", ["plain", "sealed", "checkpoints by fsspec"])
def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, kills, safe, accepted = random.Random(20261122), 0, 0, 0
    if way == "sealed":
        pytest.importorskip("cryptography")
        monkeypatch.setenv("ATOLL_STORE_KEY", "5a" * 32)
    url = f"local://{tmp_path}/elsewhere" if way == "checkpoints by fsspec" else None
    with Store(tmp_path / "runs", blobs=url) as store:
        store.create("a", {}, seed=0, rounds=ROUNDS).close()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", NURSERY, str(tmp_path / "runs"), str(ROUNDS), str(CLIENTS)]
    with (
        open(tmp_path / "errors", "w+") as errors,
        subprocess.Popen(command, stdin=-1, stdout=-1, stderr=errors, text=True, env=environment) as nursery,
    ):
        for _ in range(120):
            said = live(nursery, rng.randint(1, 16), rng.uniform(0, 4e-3))
            for word, number in said:
                if word == "resumed":  # a kill may fall between the deed and the word: more may be safe than was said
                    assert number in (safe, safe + 1), "a checkpoint was lost"
                    accepted, safe = (accepted if number == safe else 0), number
                elif word == "replayed":
                    assert number >= accepted, "an accepted answer was lost"
                    accepted = number
                elif word == "accepted":
                    accepted = number + 1
                elif word == "checkpointed":
                    accepted, safe = 0, number
            ended = said[-1][1]
            assert ended in (0, -signal.SIGKILL), (tmp_path / "errors").read_text()
            kills += ended != 0
            if ended == 0:
                break
        assert nursery.stdin is not None
        nursery.stdin.close()
    assert ended == 0, "the run never came to its end"
    assert kills >= 15
    assert (tmp_path / "elsewhere").exists() == (url is not None)
    look(tmp_path / "runs")


def look(folder: Path) -> None:
    """All is there, and once."""
    with Store(folder) as store:
        record = store.record("last")
        assert record.status == "finished"
        wanted = [(round, float(round)) for round in range(ROUNDS)]
        assert record.by_client("train", "loss") == {f"c{number}": wanted for number in range(CLIENTS)}
        with store.open("last") as run:
            found = run.latest({"w": torch.zeros(2000, dtype=torch.float64), "updates": 0})
            assert found is not None
            assert found[1]["updates"] == ROUNDS * CLIENTS
            assert found[1]["w"].eq(sum(round + number for round in range(ROUNDS) for number in range(CLIENTS))).all()
            assert run.memories.get(ClientId("c0"))["rounds"].item() == ROUNDS
    assert not list(folder.glob("**/.*.tmp"))
