"""What a run tells of its steps: the log's line and the console's, over all ranks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from hnpretrain.config import without_secrets
from hnpretrain.data.ledger import Ledger, Tally
from hnpretrain.data.loader import Position
from hnpretrain.losses import LossOutput
from hnpretrain.runs import LOG_NAME
from hnpretrain.train.checkpoint import Progress
from hnpretrain.train.distributed import Place
from hnpretrain.train.edge import Edge
from hnpretrain.train.log import RunLog, console_line
from hnpretrain.train.machine import in_use
from hnpretrain.train.setup import Run

# Below this many samples the share of rejected ones says nothing.
_MIN_SAMPLES_FOR_SHARE = 1000


@dataclass(frozen=True)
class StepResult:
    """What a step's log line tells.

    Attributes:
        loss: value, terms and metrics.
        edge: what the ranks agreed on.
        lr: learning rate.
    """

    loss: LossOutput
    edge: Edge
    lr: float


@dataclass
class Interval:
    """What happened since the last log line; times in seconds, FLOPs of the main rank."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    data_wait: float = 0.0
    flops: float = 0.0
    tally: Tally = field(default_factory=Tally)


def report(run: Run, interval: Interval, position: Position, result: StepResult) -> None:
    """Sums up the interval over all ranks, logs it, and stops the run if too much is broken."""
    tally = _gather(interval.tally, run.place)
    # Shards go by their paths, in checkpoints too.
    tally.ledger.quarantined = without_secrets(tally.ledger.quarantined)
    total = Ledger()
    total.add(run.progress.ledger)
    total.add(tally.ledger)
    before, run.progress = run.progress.ledger, replace(run.progress, ledger=total)
    seconds = time.perf_counter() - interval.started
    step = run.progress.global_step
    if run.log:
        _tell(run.log, step, tally, before)
        for note in without_secrets(tally.notes):
            if note not in run.noted:  # other workers may meet the same later
                run.noted.add(note)
                run.log.write("note", step, text=note)
                print(note, flush=True)
        fields: dict[str, Any] = {
            "epoch": position.epoch,
            "step": position.step,
            "loss": result.loss.total.item(),
            **{name: value.item() for name, value in result.loss.terms.items()},
            **{name: value.item() for name, value in result.loss.metrics.items()},
            "logit_scale": result.edge.logit_scale,
            "grad_norm": result.edge.grad_norm,
            "lr": result.lr,
            "samples": total.read,
            "ledger": total.counts(),
            "interval": tally.ledger.counts(),
            **_of_skips(run),
            **_speed(run, interval, seconds),
        }
        run.log.write("step", step, **fields)
        left = (run.total_steps - step) * seconds / interval.steps
        line = console_line(step, run.total_steps, fields, result.loss.terms, left)
        print(line, flush=True)
    _check_reject_share(run)


def close_ledger(log: RunLog, progress: Progress) -> None:
    log.write("ledger", progress.global_step, **progress.ledger.counts())
    print(f"ledger: {progress.ledger}", flush=True)


def _tell(log: RunLog, step: int, tally: Tally, before: Ledger) -> None:
    """Logs by name what was rejected: samples each, shards once a run."""
    for reject in tally.rejects:
        log.write("rejected", step, key=reject.key, reason=reject.reason, detail=reject.detail)
    for shard, why in sorted(tally.ledger.quarantined.items()):
        if shard not in before.quarantined:
            log.write("quarantined", step, shard=shard, why=why)
            print(f"quarantined shard {shard}: {why}", flush=True)


def _of_skips(run: Run) -> dict[str, Any]:
    skips = run.progress.skips
    if run.settings.precision != "fp16":
        return {"skipped": skips.total}
    return {
        "skipped": skips.total,
        "overflows": skips.overflows,
        "loss_scale": run.progress.loss_scale.value,
    }


def _speed(run: Run, interval: Interval, seconds: float) -> dict[str, float]:
    """How fast the interval's steps were, and what they made of this rank's device."""
    fields = {
        "samples_per_second": interval.steps * run.settings.batch_size / seconds,
        "step_seconds": seconds / interval.steps,
        "data_wait": interval.data_wait / seconds,
        "memory": in_use(run.place.device),
    }
    if run.peak and interval.flops:
        fields["tflops"] = interval.flops / seconds / 1e12
        fields["mfu"] = interval.flops / seconds / run.peak
    return fields


def _check_reject_share(run: Run) -> None:
    ledger = run.progress.ledger
    allowed = run.settings.data.max_reject_share
    if ledger.read >= _MIN_SAMPLES_FOR_SHARE and ledger.lost > allowed * ledger.read:
        raise ValueError(
            f"{ledger.lost} of {ledger.read} samples were rejected, more than "
            f"data.max_reject_share={allowed}: {ledger}. {run.settings.output}/{LOG_NAME} names "
            "each sample and shard with its reason"
        )


def _gather(tally: Tally, place: Place) -> Tally:
    """The sum over all ranks, on all ranks; nothing but counts is sent while all is well."""
    counts = torch.tensor([tally.ledger.read, not tally.is_plain], device=place.device)
    dist.all_reduce(counts)
    read, telling = counts.tolist()
    if not telling:
        return Tally(Ledger(read=read))
    parts = [Tally() for _ in range(place.world_size)]
    dist.all_gather_object(parts, tally)
    whole = Tally()
    for part in parts:
        whole.add(part)
    return whole
