"""The training loop.

1. Set up the run, or restore it from the latest checkpoint of its folder (setup.py).
2. For each step: batch -> features -> loss -> backward -> the ranks agree that it is finite
   (edge.py) -> optimizer -> clamp the logit scale. A step that is not finite is skipped.
3. Log; evaluate and save every so many steps (or minutes), and at the end; save when asked to stop.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from hnpretrain.data.loader import Position
from hnpretrain.data.samples import Batch
from hnpretrain.train.alone import alone_in
from hnpretrain.train.caching import forward_backward
from hnpretrain.train.distributed import on_all, process_group, set_timeouts
from hnpretrain.train.edge import Edge, Wish, meet
from hnpretrain.train.engine import (
    clipping,
    gradients,
    optimizer_step,
    own_linear,
    skip_step,
)
from hnpretrain.train.finite import Remembered, is_overflow, named
from hnpretrain.train.optimizer import learning_rate
from hnpretrain.train.report import Interval, StepResult, close_ledger, report
from hnpretrain.train.settings import TrainSettings, require_shards
from hnpretrain.train.setup import Run, set_up
from hnpretrain.train.stopping import Stopped, StopRequest

# Of a step that is skipped, at most so many ranks' keys are named.
_RANKS_NAMED = 8


def train(settings: TrainSettings) -> None:
    """Trains, from the start or from the run's latest checkpoint, to the end of the last epoch.

    Under torchrun, every rank calls this.

    Raises:
        ValueError: the settings do not fit together, with the data, or with the run to go on with;
            too many steps in a row are not finite; too many samples are broken.
        OSError: shards could not be read; the last checkpoint could not be saved; a rank is gone;
            another run does not leave the folder.
        Stopped: a signal asked for it, and the run is saved.
    """
    require_shards(settings)
    alone = alone_in(Path(settings.output))
    with StopRequest() as stop, process_group() as place, own_linear(), alone as check_alone:
        run = set_up(settings, place)
        try:
            with contextlib.closing(run.profiler):
                is_stopped = _run(run, stop, check_alone)
        finally:
            if run.log:
                run.log.close()
        if is_stopped:
            # Together: torchrun ends the others once one has left, and the main rank may be slow
            # to close what it tells. The run is saved, whatever they do.
            with contextlib.suppress(RuntimeError):
                on_all(lambda: None)
            raise Stopped


def _run(run: Run, stop: StopRequest, check_alone: Callable[[], None]) -> bool:
    """Trains to the end of the last epoch, or until a stop: True for that. Collective."""
    settings = run.settings
    run.evaluation.make_up(run.progress.global_step, run.log)
    saving = _Saving(settings.checkpoint.minutes)
    interval = Interval()
    first_is_over = False
    steps = run.loader.batches(run.progress.position, settings.epochs)
    while True:
        run.profiler.before_step(run.progress.global_step + 1)
        started = time.perf_counter()
        item = next(steps, None)
        if item is None:
            break
        position, batches, tally = item
        interval.data_wait += time.perf_counter() - started
        interval.tally.add(tally)

        if run.flops:
            interval.flops += run.flops.of_step(batches)
        if position.step == 0:
            run.loss.start_epoch()
        rate = learning_rate(settings.optimizer, run.progress.global_step, run.total_steps)
        wish = Wish(save=saving.is_due(), stop=stop.signal is not None)
        result = train_step(run, batches, rate, wish)
        run.progress = replace(
            run.progress,
            position=_after(position, run.loader.plan.steps_per_epoch),
            global_step=run.progress.global_step + 1,
        )
        interval.steps += 1

        step = run.progress.global_step
        is_last = step == run.total_steps
        save = is_last or result.edge.save or result.edge.stop
        save = save or step % settings.checkpoint.every == 0
        # A checkpoint holds the ledger too, so what was rejected is summed up before it.
        if save or step % settings.log_every == 0:
            report(run, interval, position, result)
            interval = Interval()
        # Before the checkpoint, so that a run that goes on from there has it. But who asks for a
        # stop may not wait for it: then it is made up where the run goes on.
        paused = time.perf_counter()
        if not result.edge.stop:
            run.evaluation.after_step(step, run.log)
        if save:
            check_alone()
            saving.save(run, must=is_last or result.edge.stop)
        interval.started += time.perf_counter() - paused  # none of the training's time
        if is_last and run.log:
            close_ledger(run.log, run.progress)
        if not first_is_over:
            # Compiling, opening and restoring, which take their time, are over.
            set_timeouts(settings.collective_timeout)
            first_is_over = True
        if result.edge.stop and not is_last:
            if run.place.is_main:
                print(f"stopped at step {step} and saved: the same command goes on", flush=True)
            return True
        if result.edge.stop:  # in the last step; the run does not go on
            run.evaluation.after_step(step, run.log)
    return False


class _Saving:
    """When and how checkpoints are saved.

    Args:
        minutes: see CheckpointSettings.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """By this rank's clock."""
        return 0 < self._seconds <= time.monotonic() - self._last

    def save(self, run: Run, must: bool) -> None:
        """Saves; collective. One that fails is told, and is an error if it must not."""
        self._last = time.monotonic()
        step = run.progress.global_step
        try:
            run.checkpoints.save(run.trained, run.progress)
        except OSError as error:
            if must:
                raise
            if run.log:
                print(f"{error}; the training goes on, and saves again later", flush=True)
                run.log.write("checkpoint failed", step, error=str(error))
            return
        if run.log:
            run.log.write("checkpoint", step)


def train_step(run: Run, batches: Sequence[Batch], rate: float, wish: Wish) -> StepResult:
    """One optimizer step on this rank's part of the global batch, or one that is skipped."""
    # Dropout and the like draw from (seed, step, rank), so a resumed run draws the same.
    seed = _seed_of(run.settings.seed, run.progress.global_step, run.place.rank)
    for group in run.engine.optimizer.param_groups:
        group["lr"] = rate
    remembered = Remembered(run.loss, run.model.model)
    loss_scale = run.progress.loss_scale
    output, logit_scale, features_finite = forward_backward(
        run.engine,
        run.loss,
        batches,
        lambda number: _seed_draws(seed, number, run.place.device),
        loss_scale.value,
    )
    edge = meet(
        output.total,
        logit_scale,
        features_finite,
        gradients(run.engine),
        loss_scale.value,
        in_parts=run.engine.zero_optimization(),
        wish=wish,
    )
    if edge.is_finite:
        max_norm = run.settings.optimizer.max_grad_norm
        optimizer_step(run.engine, clipping(edge.grad_norm, max_norm) / loss_scale.value)
        if run.average:
            run.average.update()
    else:
        skip_step(run.engine)
        remembered.put_back()
    _count(run, batches[0], edge)
    return StepResult(output, edge, rate)


def _count(run: Run, batch: Batch, edge: Edge) -> None:
    """Keeps count of steps that were skipped, and tells; stops the run after too many in a row."""
    progress = run.progress
    overflow = is_overflow(edge.loss, edge.grad_norm, progress.loss_scale)
    skips, told = progress.skips, None
    if edge.is_finite:
        skips = skips.taken()
    elif overflow:
        skips = skips.overflowed()
    else:
        told = _named(run, batch, edge)
        skips = skips.skipped(told)
    scaled = run.settings.precision == "fp16" and (edge.is_finite or overflow)
    loss_scale = progress.loss_scale.after(overflow) if scaled else progress.loss_scale
    run.progress = replace(progress, skips=skips, loss_scale=loss_scale)
    if run.log and overflow:
        run.log.write("overflow", progress.global_step + 1, loss_scale=loss_scale.value)
    if run.log and told:
        print(f"skipped: {told}", flush=True)
        run.log.write("skipped", progress.global_step + 1, reason=told)
    skips.check(run.settings.max_skipped)


def _named(run: Run, batch: Batch, edge: Edge) -> str:
    """A step that is not finite in words, with the first keys of batches; collective."""
    keys: list[tuple[str, ...]] = [()] * run.place.world_size
    dist.all_gather_object(keys, tuple(batch.keys[:4]))
    ranks = edge.suspects or tuple(range(run.place.world_size))
    what, value = ("loss", edge.loss)
    if math.isfinite(edge.loss):
        what, value = ("norm of the gradients", edge.grad_norm)
    first = [(rank, keys[rank]) for rank in ranks[:_RANKS_NAMED]]
    return named(run.progress.global_step, what, value, first)


def _after(position: Position, steps_per_epoch: int) -> Position:
    if position.step + 1 < steps_per_epoch:
        return Position(position.epoch, position.step + 1)
    return Position(position.epoch + 1, 0)


def _seed_draws(seed: int, micro_batch: int, device: torch.device) -> None:
    seed = (seed + micro_batch * 0xD1B54A32D192ED03) % 2**63
    # Not torch.manual_seed: where CUDA is unused, it queues a call for it, a little more each step.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _seed_of(seed: int, step: int, rank: int) -> int:
    # Distinct for every step of up to 2^20 ranks, within torch's 64 bits.
    return (seed * 0x9E3779B97F4A7C15 + (step << 20) + rank) % 2**63
