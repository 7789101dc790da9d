"""What the screen says while words are counted and shards are built."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shard_tools import progress
from shard_tools.counting import CountState
from shard_tools.job import JobState
from shard_tools.prepare import WaitState
from shard_tools.progress import JobProgress, Rate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def state(seconds: float, built: int = 0, **changes: object) -> JobState:
    """Half way, at 50 samples and 250 captions a second, of which 200 have negatives."""
    count = int(50 * seconds)
    values = {
        "shards": 10, "shards_kept": 2, "shards_built": built, "stopping": False,
        "unit": "samples", "work_to_do": 6000, "samples": count, "captions": 5 * count,
        "captions_with_negatives": 4 * count, "rejects": 3, "work": count,
    }  # fmt: skip
    return JobState(**{**values, **changes})  # type: ignore[arg-type]


def test_a_rate_is_that_of_the_last_minute() -> None:
    rate = Rate()
    assert (rate.per_second(), rate.seconds_for(9)) == (0.0, None)
    for tenth in range(3000):
        rate.add(tenth / 10, tenth)  # 10 a second
    assert rate.per_second() == pytest.approx(10)
    for tenth in range(3000, 4000):
        rate.add(tenth / 10, 3000 + 4 * (tenth - 3000))
    assert rate.per_second() == pytest.approx(40)
    assert rate.seconds_for(400) == pytest.approx(10)


def test_a_count_that_comes_in_steps_gives_a_steady_rate() -> None:
    """Batches and shards end at once: what is shown must not jump."""
    rate, shown = Rate(), []
    for tenth in range(6000):
        rate.add(tenth / 10, tenth // 50 * 500)  # 500 every 5 s
        if tenth > 1000:
            shown.append(rate.per_second())
    assert 90 < min(shown) < max(shown) < 110


def test_lines_in_a_log(clock: list[float]) -> None:
    out = io.StringIO()
    with JobProgress(Console(file=out, width=60)) as show:
        show(CountState(0, 500_000, False))
        for second in range(21):
            clock[0] = 100.0 + second
            show(CountState(1000 * second, 500_000, False))
        for second in range(61):
            clock[0] = 120.0 + second
            show(state(second))
        show(state(120, 8, work=6000))
        show(state(120, 8, work=6000))
    lines = out.getvalue().splitlines()
    assert lines[:2] == [
        "counting words | 10,000 of 500,000 captions at 1,000/s, 0:08:10 to go",
        "counting words | 20,000 of 500,000 captions at 1,000/s, 0:08:00 to go",
    ]
    assert lines[2] == (
        "shards 2/10 | 500 samples, 2,500 captions at 250/s, 80% with negatives, 3 rejects, "
        "8% done, 0:01:50 to go"
    )
    assert len(lines) == 2 + 6 + 1
    assert lines[-1].startswith("shards 10/10 | 6,000 samples, 30,000 captions at ")
    assert lines[-1].endswith(", 3 rejects, 100% done")


def test_a_long_job_s_log_stays_short(clock: list[float]) -> None:
    out = io.StringIO()
    show = JobProgress(Console(file=out))
    for minute in range(0, 600 * 60, 5):
        clock[0] = 100.0 + minute
        show(state(minute, work_to_do=10**9))
    assert 600 <= len(out.getvalue().splitlines()) <= 660


def test_one_bar_on_a_terminal(clock: list[float]) -> None:
    out = io.StringIO()
    with JobProgress(Console(file=out, width=160, force_terminal=True)) as show:
        show(WaitState("process 7 on host since then"))
    assert "waiting" in out.getvalue()
    assert "for process 7 on host since then, which works for all parts" in out.getvalue()
    with JobProgress(Console(file=out, width=160, force_terminal=True)) as show:
        for second in range(10):
            clock[0] = 100.0 + second
            show(state(second, unit="bytes"))
    last = out.getvalue().splitlines()[-2]
    assert "shards 2/10" in last
    assert "450 samples, 2,250 captions at 250/s, 80% with negatives, 3 rejects, 8% done" in last
    assert "0:01:51 to go" in last


def test_stopping_is_said_once() -> None:
    out = io.StringIO()
    show = JobProgress(Console(file=out))
    for _ in range(3):
        show(state(1, stopping=True))
    assert out.getvalue().count("stopping after the samples at hand; Ctrl-C again") == 1
