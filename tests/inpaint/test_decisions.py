"""Decisions are on the disk when `append` returns, and outlive what a power cut leaves."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from hnpretrain.inpaint.decisions import (
    Decisions,
    agreement,
    check_reviewer,
    read_decisions,
    read_reviewer,
    standing,
)
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import to_json
from hnpretrain.shards.lock import Locked
from tests.inpaint.reviewing import decision


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def file_of(folder: Folder, reviewer: str = "ana") -> Path:
    return folder.decisions / f"{reviewer}.jsonl"


def write(folder: Folder, data: bytes, reviewer: str = "ana") -> None:
    folder.decisions.mkdir(exist_ok=True)
    file_of(folder, reviewer).write_bytes(data)


def line(proposal: str, verdict: str = "accept", **fields: Any) -> bytes:
    return json.dumps(to_json(decision(proposal, verdict, **fields))).encode() + b"\n"


def test_decisions_come_back_as_they_were_made(folder: Folder) -> None:
    made = [
        decision("a", note="caf\u00e9\u2028 \U0001f408"),
        decision("a", "undo"),
        decision("b", "reject", candidate=""),
    ]
    with Decisions(folder, "ana") as decisions:
        for each in made[:2]:
            decisions.append(each)
        assert list(decisions.made) == made[:2]
    with Decisions(folder, "ana") as decisions:
        assert list(decisions.made) == made[:2]
        decisions.append(made[2])
        assert read_decisions(folder) == {"ana": made}
    assert file_of(folder).read_bytes().count(b"\n") == 3
    assert [path.name for path in folder.decisions.iterdir()] == ["ana.jsonl"]


def test_who_only_looks_leaves_nothing(folder: Folder) -> None:
    with Decisions(folder, "ana") as decisions:
        assert decisions.made == ()
    assert list(folder.root.iterdir()) == []
    assert read_decisions(folder) == {}


def test_one_reviewers_decisions_are_read_without_a_trace(folder: Folder) -> None:
    assert read_reviewer(folder, "ana") == []
    assert not folder.decisions.exists()
    with Decisions(folder, "ana") as decisions:
        decisions.append(decision())
        with pytest.raises(Locked, match=rf"ana\.lock is held by process {os.getpid()} "):
            read_reviewer(folder, "ana")
    whole = (folder.decisions / "ana.jsonl").read_bytes()
    (folder.decisions / "ana.jsonl").write_bytes(whole + whole[:9])
    told: list[str] = []
    assert read_reviewer(folder, "ana", told.append) == [decision()]
    assert len(told) == 1
    assert "ana.jsonl: the last line was cut short" in told[0]
    assert (folder.decisions / "ana.jsonl").read_bytes() == whole + whole[:9]
    assert [path.name for path in folder.decisions.iterdir()] == ["ana.jsonl"]
    with pytest.raises(ValueError, match="must be 1 to 40 letters"):
        read_reviewer(folder, "../ana")


def test_the_disk_is_asked_before_append_returns(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, path.stat().st_size if path.is_file() else -1))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    with Decisions(folder, "ana") as decisions:
        decisions.append(decision("a"))
        size = file_of(folder).stat().st_size
        # The file whole, then its name, then the name of its folder, which is new too.
        assert synced == [("ana.jsonl", size), ("decisions", -1), (folder.root.name, -1)]
        synced.clear()
        decisions.append(decision("b"))
        assert synced == [("ana.jsonl", file_of(folder).stat().st_size)]


@pytest.mark.parametrize("cut", [1, 20, 100, -2])
def test_a_last_line_cut_short_is_put_aside(folder: Folder, cut: int) -> None:
    tail = line("b")[:cut]
    write(folder, line("a") + tail)
    told: list[str] = []
    assert [each.proposal for each in read_decisions(folder, told.append)["ana"]] == ["a"]
    assert told == [
        f"{file_of(folder)}: the last line was cut short, before it was said to be saved; "
        "it is left out"
    ]
    assert file_of(folder).read_bytes() == line("a") + tail
    told.clear()
    with Decisions(folder, "ana", told.append) as decisions:
        assert told[0].endswith("it is put aside in ana.broken-1")
        decisions.append(decision("c"))
    assert (folder.decisions / "ana.broken-1").read_bytes() == tail
    assert file_of(folder).read_bytes() == line("a") + line("c")
    assert len(told) == 1


def test_earlier_broken_lines_are_not_written_over(folder: Folder) -> None:
    for number, tail in enumerate((b'{"prop', b"\0" * 300, b"\0" * 20 + line("b")[20:]), 1):
        write(folder, line("a") + tail)
        with Decisions(folder, "ana", tell=lambda _: None) as decisions:
            assert len(decisions.made) == 1
        assert (folder.decisions / f"ana.broken-{number}").read_bytes() == tail


def test_a_whole_last_line_without_its_end_counts(folder: Folder) -> None:
    write(folder, line("a") + line("b").rstrip())
    told: list[str] = []
    with Decisions(folder, "ana", told.append) as decisions:
        decisions.append(decision("c"))
    assert told == []
    assert file_of(folder).read_bytes() == line("a") + line("b") + line("c")


@pytest.mark.parametrize(
    "broken, problem",
    [
        (b'{"proposal": "x"\n', "line 2: not JSON"),
        (b"[]\n", "line 2: must be a JSON object"),
        (b'{"proposal": "x"}\n', "line 2: field 'reviewer' is missing"),
        (line("x", "adore"), "line 2: verdict 'adore', must be one of accept, reject, skip, undo"),
        (line("x", reviewer="bob"), "line 2: of reviewer 'bob', must be of 'ana'"),
        (b"\xff\xfe\n", "line 2: not JSON"),
    ],
)
def test_a_broken_line_in_the_middle_is_named(folder: Folder, broken: bytes, problem: str) -> None:
    data = line("a") + broken + line("b")
    write(folder, data)
    with pytest.raises(ValueError, match="ana.jsonl, " + problem):
        read_decisions(folder)
    with pytest.raises(ValueError, match="ana.jsonl, " + problem):
        Decisions(folder, "ana")
    assert file_of(folder).read_bytes() == data
    assert [path.name for path in folder.decisions.iterdir()] == ["ana.jsonl"]  # and no lock


def test_a_full_disk_leaves_no_part_of_a_decision(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Decisions(folder, "ana") as decisions:
        decisions.append(decision("a"))

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                decisions.append(decision("b"))
        assert file_of(folder).read_bytes() == line("a")
        decisions.append(decision("c"))
    assert file_of(folder).read_bytes() == line("a") + line("c")


def test_a_file_that_was_exchanged_meanwhile_gets_the_next_decision(folder: Folder) -> None:
    with Decisions(folder, "ana") as decisions:
        decisions.append(decision("a"))
        decisions.append(decision("b"))
        beside = folder.decisions / "beside"
        beside.write_bytes(line("z"))
        beside.replace(file_of(folder))  # as editors save
        decisions.append(decision("c"))
        assert [each.proposal for each in decisions.made] == ["z", "c"]
    assert file_of(folder).read_bytes() == line("z") + line("c")


def test_one_process_a_reviewer(folder: Folder) -> None:
    code = (
        "import sys; from hnpretrain.inpaint.decisions import Decisions; "
        "from hnpretrain.inpaint.folder import Folder; "
        "Decisions(Folder(sys.argv[1]), sys.argv[2]); print('has it')"
    )

    def other(reviewer: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(folder.root), reviewer]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with Decisions(folder, "ana") as decisions:
        with pytest.raises(Locked, match=f"held by process {os.getpid()}"):
            Decisions(folder, "ana")
        refused = other("ana")
        assert refused.returncode == 1
        assert f"ana.lock is held by process {os.getpid()}" in refused.stderr
        assert other("bob").stdout == "has it\n"
        decisions.append(decision("a"))
    assert other("ana").stdout == "has it\n"


def test_threads_write_whole_lines(folder: Folder) -> None:
    with Decisions(folder, "ana") as decisions:

        def some(first: int) -> None:
            for number in range(first, first + 20):
                decisions.append(decision(f"p{number}"))

        threads = [threading.Thread(target=some, args=(100 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    made = read_decisions(folder)["ana"]
    assert {each.proposal for each in made} == {
        f"p{100 * n + i}" for n in range(4) for i in range(20)
    }
    assert len(made) == 80


@pytest.mark.parametrize("name", ["ana", "Ana-Maria_2.b", "_", "a" * 40, "0"])
def test_names(folder: Folder, name: str) -> None:
    assert check_reviewer(name) == name
    with Decisions(folder, name) as decisions:
        decisions.append(decision(reviewer=name))
    assert list(read_decisions(folder)) == [name]


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".ana", "-a", "../ana", "a/b", "a\\b", "a b", "a\n", "a" * 41, "\u00e1"]
)
def test_what_is_no_name(folder: Folder, name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 40 letters"):
        Decisions(folder, name)
    assert list(folder.root.iterdir()) == []


def test_a_file_of_another_name_is_named(folder: Folder) -> None:
    write(folder, line("a"), reviewer="no name")
    with pytest.raises(ValueError, match=r"no name.jsonl: reviewer 'no name': must be"):
        read_decisions(folder)


def test_another_reviewers_decision_is_refused(folder: Folder) -> None:
    with Decisions(folder, "ana") as decisions:
        with pytest.raises(ValueError, match="of reviewer 'bob', must be of 'ana'"):
            decisions.append(decision(reviewer="bob"))
        with pytest.raises(ValueError, match="verdict 'adore'"):
            decisions.append(decision(verdict="adore"))


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        ("", ""),
        ("accept", "accept"),
        ("accept reject", "reject"),
        ("accept reject undo", "accept"),
        ("accept reject undo undo", ""),
        ("accept undo undo undo reject", "reject"),
        ("undo", ""),
        ("skip accept undo", "skip"),
    ],
)
def test_undo_takes_back_the_last_one(verdicts: str, expected: str) -> None:
    made = []
    for number, verdict in enumerate(verdicts.split()):
        # Decisions on another proposal lie in between, and matter to it alone.
        made += [decision("p", verdict, time=float(number)), decision("other", "accept")]
    stands = standing(made)
    assert (stands["p"].verdict if "p" in stands else "") == expected
    assert ("other" in stands) == bool(made)


def test_what_stands_is_in_the_order_of_its_making() -> None:
    made = [decision("a"), decision("b"), decision("c"), decision("a", "reject")]
    assert list(standing(made)) == ["b", "c", "a"]
    assert list(standing([*made, decision("a", "undo")])) == ["a", "b", "c"]


def test_agreement_is_that_of_scikit_learn() -> None:
    draws = random.Random(3)
    for _ in range(30):
        count = draws.randint(2, 40)
        lean = draws.random()
        labels = [
            [draws.choices(("accept", "reject"), (lean, 1 - lean))[0] for _ in range(count)]
            for _ in range(2)
        ]
        made = {
            name: [decision(f"p{n}", verdict, name) for n, verdict in enumerate(given)]
            for name, given in zip(("ana", "bob"), labels, strict=True)
        }
        (pair,) = agreement(made).pairs
        if len({*labels[0], *labels[1]}) == 1:
            assert pair.kappa is None
        else:
            assert pair.kappa == pytest.approx(cohen_kappa_score(*labels))
        assert pair.raw == sum(a == b for a, b in zip(*labels, strict=True)) / count
        assert pair.raw == agreement(made).raw


def test_agreement_counts_what_two_or_more_judged() -> None:
    def of(name: str, **verdicts: str) -> list[Any]:
        return [decision(proposal, verdict, name) for proposal, verdict in verdicts.items()]

    made = {
        "cyd": of("cyd", p="accept", q="skip", r="reject"),
        "ana": of("ana", p="accept", q="accept", r="accept", s="reject"),
        "bob": [*of("bob", p="accept", q="accept", s="reject"), decision("s", "undo", "bob")],
        "dee": [],
    }
    found = agreement(made)
    # p by three, q by ana and bob, r by ana and cyd; bob took s back.
    assert (found.proposals, found.unanimous) == (3, 2)
    assert [pair.reviewers for pair in found.pairs] == [
        ("ana", "bob"),
        ("ana", "cyd"),
        ("bob", "cyd"),
    ]
    assert [(pair.proposals, pair.agreed) for pair in found.pairs] == [(2, 2), (2, 1), (1, 1)]
    # ana accepts both, cyd one of them: p_o = p_e = 1/2.
    assert [pair.kappa for pair in found.pairs] == [None, 0.0, None]
    assert agreement({}).raw is None
    assert agreement({"ana": made["ana"]}).pairs == ()
