"""`hnpretrain bench loss` on small batches: figures, errors, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from hnpretrain.bench import loss
from hnpretrain.bench.contenders import Contender, contenders
from hnpretrain.bench.report import print_loss
from hnpretrain.cli import app


def _run(*arguments):
    return CliRunner().invoke(app, ["bench", "loss", "--device", "cpu", *arguments])


def test_rows_hold_time_memory_and_errors(tmp_path):
    file = tmp_path / "rows.json"
    sizes = ("--batch", "128", "--dim", "32", "--negatives", "2", "--ranks", "1,2")
    result = _run(*sizes, "--repeats", "2", "--json", str(file))
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    by_case = {}
    for row in rows:
        by_case.setdefault((row["K"], row["ranks"]), {})[row["case"]] = row
    assert len(by_case) == 2
    for (K, ranks), found in by_case.items():
        ours = {"ours"} if ranks == 1 else {"ours, gather", "ours, ring"}
        appended = {"open_clip, all negatives"} if K else set()
        assert found.keys() == ours | appended | {"open_clip, no negatives"}
        for row in found.values():
            assert row["seconds"] > 0
            assert row["peak_bytes"] >= 0  # so small a batch fits into what is there
            assert row["loss_error"] < 1e-4
            assert row["gradient_error"] < 1e-4
            assert row["ratio"] > 0
    for shown in ("B=128", "open_clip, no negatives", "grad err"):
        assert shown in result.output.replace("\n", " ")


def test_a_peer_that_cannot_do_the_case_is_told(monkeypatch, capsys):
    def fails(_):
        raise RuntimeError("out of shared memory")

    broken = Contender("peer", False, "none", lambda: fails, 4)
    monkeypatch.setattr(loss, "contenders", lambda *case: [*contenders(*case), broken])
    monkeypatch.setattr(loss, "_in_ranks", lambda work, *arguments: work(*arguments))
    case = loss.Case(B=64, D=16, K=0, dtype="fp32", ranks=1, device="cpu", repeats=1)
    (rows,) = loss.compare([case])
    assert [row["case"] for row in rows if row["seconds"] is None] == ["peer"]
    print_loss(rows)
    assert "peer failed: RuntimeError: out of shared memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--batch", "12x"), "give whole numbers"),
        (("--negatives", "-1"), "at least 0"),
        (("--dtype", "fp8"), "fp32, bf16, fp16"),
        (("--batch", "9", "--ranks", "2"), "no multiple"),
    ],
)
def test_wrong_arguments(arguments, message):
    result = _run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
