"""Cuts tests/assets/wordnet from an installed WordNet, in its own format.

    python -m tests.support.wordnet_subset /usr/share/wordnet tests/assets/wordnet

Kept are the first three meanings of the words below and all that hypernyms lead to; pointers that
lead elsewhere are dropped. Lines move, so offsets are written anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

WORDS = {
    "noun": """
        dog fox wolf puppy cat kitten horse donkey animal man woman boy girl person lady fork spoon
        knife chopstick bench couch sofa chair table car truck bus bicycle motorcycle skateboard
        bathroom kitchen bedroom pizza apple lemon orange banana sheep goose actor father runway
        lever hot_dog lion tiger elephant zebra mule
    """,
    "verb": "sit stand lie eat drink walk run push pull ride open close sleep hold look",
    "adj": "young old new large small open closed shut wet dry black white hot cold green ripe red",
}
SENSES = 3
CODES = {"n": "noun", "v": "verb", "a": "adj", "s": "adj"}


def main(source: Path, target: Path) -> None:
    """Writes the subset of the WordNet in `source` to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    lines = {part: _lines(source / f"data.{part}") for part in WORDS}
    headers = {part: _header(source / f"data.{part}") for part in WORDS}
    index = {part: _index(source / f"index.{part}", WORDS[part].split()) for part in WORDS}
    kept: dict[str, set[str]] = {part: set() for part in WORDS}
    for part, words in index.items():
        for fields in words.values():
            for offset in _offsets(fields)[:SENSES]:
                _keep(part, offset, lines, kept)

    places: dict[tuple[str, str], str] = {}
    shortened = {part: {} for part in WORDS}
    for part in WORDS:
        for offset in sorted(kept[part]):
            shortened[part][offset] = _without_lost_pointers(lines[part][offset], kept)
        place = len(headers[part])
        for offset, line in shortened[part].items():
            places[part, offset] = f"{place:08d}"
            place += len(line) + 1
    for part in WORDS:
        moved = [_moved(line, part, places) for line in shortened[part].values()]
        (target / f"data.{part}").write_text(headers[part] + "".join(f"{m}\n" for m in moved))
        entries = []
        for fields in index[part].values():
            offsets = [places[part, offset] for offset in _offsets(fields)[:SENSES]]
            tagged = min(int(fields[-int(fields[2]) - 1]), SENSES)
            number = len(offsets)
            entries.append(" ".join([*fields[:2], f"{number} 0 {number} {tagged}", *offsets]))
        (target / f"index.{part}").write_text(
            _header(source / f"index.{part}") + "".join(f"{entry}  \n" for entry in sorted(entries))
        )
        exceptions = (source / f"{part}.exc").read_text().splitlines()
        own = [line for line in exceptions if line.split()[1] in index[part]]
        (target / f"{part}.exc").write_text("".join(f"{line}\n" for line in own))
    counts = (source / "cntlist.rev").read_text().splitlines()
    types = {"1": "noun", "2": "verb", "3": "adj", "5": "adj"}
    (target / "cntlist.rev").write_text(
        "".join(
            f"{line}\n"
            for line in counts
            for lemma, _, rest in [line.partition("%")]
            if lemma in index.get(types.get(rest[0], ""), {}) and int(line.split()[1]) <= SENSES
        )
    )


def _header(path: Path) -> str:
    lines = path.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("  "))


def _lines(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {line[:8]: line for line in lines if not line.startswith("  ")}


def _index(path: Path, words: list[str]) -> dict[str, list[str]]:
    found = {}
    for line in path.read_text().splitlines():
        fields = line.split()
        if not line.startswith("  ") and fields[0] in words:
            found[fields[0]] = fields
    return found


def _offsets(fields: list[str]) -> list[str]:
    return fields[-int(fields[2]) :]


def _keep(
    part: str, offset: str, lines: dict[str, dict[str, str]], kept: dict[str, set[str]]
) -> None:
    if offset not in kept[part]:
        kept[part].add(offset)
        for symbol, target, code, _ in _pointers(lines[part][offset])[1]:
            if symbol in ("@", "@i"):
                _keep(CODES[code], target, lines, kept)


def _pointers(line: str) -> tuple[int, list[list[str]], list[str]]:
    """Where the pointers of a line begin, they, and the fields after them."""
    fields = line.split(" ")
    at = 4 + 2 * int(fields[3], 16)
    count = int(fields[at])
    pointers = [fields[i : i + 4] for i in range(at + 1, at + 1 + 4 * count, 4)]
    return at, pointers, fields[at + 1 + 4 * count :]


def _without_lost_pointers(line: str, kept: dict[str, set[str]]) -> str:
    at, pointers, rest = _pointers(line)
    own = [p for p in pointers if p[2] in CODES and p[1] in kept[CODES[p[2]]]]
    flat = [field for pointer in own for field in pointer]
    return " ".join([*line.split(" ")[:at], f"{len(own):03d}", *flat, *rest])


def _moved(line: str, part: str, places: dict[tuple[str, str], str]) -> str:
    at, pointers, rest = _pointers(line)
    fields = line.split(" ")
    flat = []
    for symbol, offset, code, words in pointers:
        flat += [symbol, places[CODES[code], offset], code, words]
    return " ".join([places[part, fields[0]], *fields[1 : at + 1], *flat, *rest])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
