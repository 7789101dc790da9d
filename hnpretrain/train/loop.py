"""The training loop.

1. Read the index, make the plan, build the model, choose the micro-batches, wrap the model in a
   DeepSpeed engine.
2. Restore the latest checkpoint of the run's folder, if there is one.
3. For each step: batch -> features -> loss -> backward -> optimizer -> clamp the logit scale.
4. Log; save every so many steps and at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hnpretrain import config
from hnpretrain.data.loader import Loader, Position, make_plan
from hnpretrain.data.samples import Batch
from hnpretrain.data.texts import TextLayout
from hnpretrain.losses import HardNegativeContrastiveLoss, LossOutput
from hnpretrain.models import LoadedModel, build
from hnpretrain.shards import storage
from hnpretrain.shards.index import Index, read_index
from hnpretrain.shards.marker import Reject
from hnpretrain.train.caching import check_micro_batches, forward_backward
from hnpretrain.train.captions import sample_captions
from hnpretrain.train.checkpoint import (
    RUN_CONFIG_NAME,
    Checkpoints,
    Progress,
    find_latest,
    ranks_of,
    readable,
)
from hnpretrain.train.distributed import Place, on_main, process_group
from hnpretrain.train.engine import build_engine, optimizer_step, own_linear
from hnpretrain.train.log import LOG_NAME, RunLog, console_line
from hnpretrain.train.machine import local_ranks
from hnpretrain.train.memory import Job, choose, told
from hnpretrain.train.optimizer import learning_rate
from hnpretrain.train.settings import TrainSettings, require_shards
from hnpretrain.train.towers import lay_out_for

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

# Below this many samples the share of rejected ones says nothing.
_MIN_SAMPLES_FOR_SHARE = 1000


def train(settings: TrainSettings) -> None:
    """Trains, from the start or from the run's latest checkpoint, to the end of the last epoch.

    Under torchrun, every rank calls this.

    Raises:
        ValueError: the settings do not fit together, with the data, or with the run to go on with;
            the loss is not finite; too many samples are broken.
        OSError: shards could not be read.
    """
    require_shards(settings)
    with process_group() as place, own_linear():
        run = _set_up(settings, place)
        try:
            _run(run)
        finally:
            if run.log:
                run.log.close()


@dataclass
class _Run:
    """What a run is made of, on this rank."""

    settings: TrainSettings
    place: Place
    index: Index
    loader: Loader
    model: LoadedModel
    engine: DeepSpeedEngine
    loss: HardNegativeContrastiveLoss
    checkpoints: Checkpoints
    progress: Progress
    total_steps: int
    log: RunLog | None  # on the main rank


def _set_up(settings: TrainSettings, place: Place) -> _Run:
    folder = Path(settings.output)
    latest = find_latest(folder)
    before = _read_config(latest) if latest else None
    if before and not settings.data.streams:
        # A run that goes on keeps the number of streams that was chosen when it began.
        settings = replace(settings, data=replace(settings.data, streams=before.data.streams))
    if latest and before and not settings.micro_batches and ranks_of(latest) == place.world_size:
        # Likewise of micro-batches, on which draws depend; on other ranks they differ anyway.
        settings = replace(settings, micro_batches=before.micro_batches)
    index = read_index(settings.data.shards)
    plan = make_plan(settings.data, index, settings.batch_size, settings.seed, place.world_size)
    settings = replace(settings, data=replace(settings.data, streams=plan.streams))

    torch.manual_seed(settings.seed)  # the same weights on every rank
    model = build(settings.model)
    loss = settings.loss.make(settings.data.negatives).to(place.device)
    layout = lay_out_for(model.model, loss, settings).layout
    settings = _with_micro_batches(settings, place, index, model, loss, layout)
    engine = build_engine(model.model, loss, settings, place)
    identity = _identity(settings, index, model, loss, place)
    resolved = config.to_yaml(settings)
    checkpoints = Checkpoints(folder, settings.checkpoint, identity, resolved, place)
    progress = checkpoints.restore(engine, loss, latest)
    loader = Loader(
        settings.data,
        index,
        plan,
        model.preprocess_train,
        model.tokenizer,
        layout,
        place.rank,
        place.world_size,
        settings.micro_batches,
        pin_memory=place.device.type == "cuda",
    )
    total_steps = settings.epochs * plan.steps_per_epoch
    log = None
    if place.is_main:
        _announce(settings, before, place, index, loader, progress)
        if progress.global_step < total_steps:  # else these settings train nothing
            storage.write_bytes(str(folder / RUN_CONFIG_NAME), resolved.encode())
        log = RunLog(folder, progress.global_step)
    return _Run(
        settings=settings,
        place=place,
        index=index,
        loader=loader,
        model=model,
        engine=engine,
        loss=loss,
        checkpoints=checkpoints,
        progress=progress,
        total_steps=total_steps,
        log=log,
    )


def _with_micro_batches(
    settings: TrainSettings,
    place: Place,
    index: Index,
    model: LoadedModel,
    loss: HardNegativeContrastiveLoss,
    layout: TextLayout,
) -> TrainSettings:
    """The settings with the number of micro-batches; collective if it is to be chosen.

    Raises:
        ValueError: the number that is set does not go with the batch or the model, or captions
            cannot be read.
        OSError: likewise.
    """
    size = settings.batch_size // place.world_size

    def chosen() -> int:
        captions = sample_captions(settings.data, index, model.tokenizer, settings.seed)
        job = Job(settings, model.model, loss, layout, captions, place.world_size, place.device)
        choice = choose(job, local_ranks(place.world_size))
        print(told(choice, size), flush=True)  # a rank that runs out of memory flushes nothing
        return choice.micro_batches

    if not settings.micro_batches:  # by one rank: each sees another amount of free memory
        settings = replace(settings, micro_batches=on_main(chosen))
    check_micro_batches(settings.micro_batches, size, model.model)
    return settings


def _read_config(checkpoint: Path) -> TrainSettings:
    with readable(checkpoint):
        return config.load(TrainSettings, checkpoint / RUN_CONFIG_NAME)


def _identity(
    settings: TrainSettings,
    index: Index,
    model: LoadedModel,
    loss: HardNegativeContrastiveLoss,
    place: Place,
) -> dict[str, Any]:
    """What a run cannot change on its way; see Checkpoints."""
    return {
        "data.shards": index.fingerprint,
        "model": model.config,
        "model.pretrained": settings.model.pretrained,
        "model.augmentation": settings.model.augmentation,
        # The optimizer holds the parameters that are trained, and no others.
        "model.lock_image": settings.model.lock_image,
        "model.lock_text": settings.model.lock_text,
        "loss.objective": settings.loss.objective,
        "loss.scope": loss.scope,
        "loss.weights": loss.weights,
        "loss.label_smoothing": settings.loss.label_smoothing,
        "precision": settings.precision,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "data.streams": settings.data.streams,
        "data.block_size": settings.data.block_size,
        "data.negatives": settings.data.negatives,
        # torch restores these with the optimizer, so a change would be ignored in silence.
        "optimizer.weight_decay": settings.optimizer.weight_decay,
        "optimizer.betas": list(settings.optimizer.betas),
        "optimizer.eps": settings.optimizer.eps,
        "zero_stage": settings.zero_stage,
        # ZeRO cuts the optimizer's state into one part a rank.
        "the number of processes": place.world_size if settings.zero_stage else None,
    }


def _announce(
    settings: TrainSettings,
    before: TrainSettings | None,
    place: Place,
    index: Index,
    loader: Loader,
    progress: Progress,
) -> None:
    plan = loader.plan
    print(
        f"{plan.samples} samples in {len(plan.shard_samples)} shards | "
        f"{plan.steps_per_epoch} steps of {plan.batch_size} an epoch, {settings.epochs} epochs | "
        f"{plan.streams} streams on {place.world_size} ranks ({place.device.type}) | "
        f"{plan.left_out} samples left out of an epoch"
    )
    if settings.data.negatives > index.max_negatives:
        print(
            f"data.negatives={settings.data.negatives}, but these shards hold at most "
            f"{index.max_negatives} a caption: the rest is masked"
        )
    if before is None:
        return
    if progress.global_step >= settings.epochs * plan.steps_per_epoch:
        print(
            f"nothing is left to train: {settings.output} is at epoch {progress.position.epoch} "
            f"of epochs={settings.epochs}. Another training goes into another `output`"
        )
        return
    print(
        f"going on at epoch {progress.position.epoch}, step {progress.position.step} "
        f"from {settings.output}"
    )
    for key, (old, new) in config.changes(before, settings).items():
        print(f"  with {key}={new}, it was {old}")


def _run(run: _Run) -> None:
    settings = run.settings
    interval = _Interval()
    steps = run.loader.batches(run.progress.position, settings.epochs)
    while True:
        started = time.perf_counter()
        item = next(steps, None)
        if item is None:
            break
        position, batches, rejects = item
        interval.data_wait += time.perf_counter() - started
        interval.rejects += rejects

        if position.step == 0:
            run.loss.start_epoch()
        rate = learning_rate(settings.optimizer, run.progress.global_step, run.total_steps)
        result = train_step(run, batches, rate)
        run.progress = replace(
            run.progress,
            position=_after(position, run.loader.plan.steps_per_epoch),
            global_step=run.progress.global_step + 1,
            samples=run.progress.samples + settings.batch_size,
        )
        interval.steps += 1

        step = run.progress.global_step
        is_last = step == run.total_steps
        save = is_last or step % settings.checkpoint.every == 0
        # A checkpoint holds the ledger too, so what was rejected is summed up before it.
        if save or step % settings.log_every == 0:
            _report(run, interval, position, result)
            interval = _Interval()
        if save:
            run.checkpoints.save(run.engine, run.model, run.loss, run.progress)
            if run.log:
                run.log.write("checkpoint", step)


@dataclass(frozen=True)
class StepResult:
    """What a step's log line tells.

    Attributes:
        loss: value, terms and metrics.
        logit_scale: the multiplier s that the loss was computed with.
        grad_norm: global norm of the gradients, before clipping.
        lr: learning rate.
    """

    loss: LossOutput
    logit_scale: float
    grad_norm: float
    lr: float


def train_step(run: _Run, batches: Sequence[Batch], rate: float) -> StepResult:
    """One optimizer step on this rank's part of the global batch."""
    # Dropout and the like draw from (seed, step, rank), so a resumed run draws the same.
    seed = _seed_of(run.settings.seed, run.progress.global_step, run.place.rank)
    for group in run.engine.optimizer.param_groups:
        group["lr"] = rate
    output, scale = forward_backward(
        run.engine, run.loss, batches, lambda number: _seed_draws(seed, number, run.place.device)
    )
    norm = optimizer_step(run.engine)
    # Read together at the step's end, since each read waits for the device. Both values are global,
    # so all ranks stop together, after a step that is never saved.
    loss, grad_norm, logit_scale = _read(output.total, norm, scale)
    if not math.isfinite(loss):
        raise ValueError(_not_finite("loss", loss, run, batches[0]))
    if not 0 <= grad_norm < math.inf:  # DeepSpeed may call a norm that is none -1
        raise ValueError(_not_finite("norm of the gradients", grad_norm, run, batches[0]))
    return StepResult(output, logit_scale, grad_norm, rate)


def _read(*values: torch.Tensor) -> list[float]:
    """Scalars from the device, in one copy."""
    return torch.stack([value.detach().double() for value in values]).tolist()


def _not_finite(what: str, value: float, run: _Run, batch: Batch) -> str:
    return (
        f"the {what} is {value} at step {run.progress.global_step}; the first keys of this rank's "
        f"batch are {', '.join(batch.keys[:4])}. Lower optimizer.lr, raise optimizer.warmup_steps "
        "or set optimizer.max_grad_norm; the run goes on from its last checkpoint"
    )


@dataclass
class _Interval:
    """What happened since the last log line; times in seconds."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    data_wait: float = 0.0
    rejects: list[Reject] = field(default_factory=list)


def _report(run: _Run, interval: _Interval, position: Position, result: StepResult) -> None:
    """Sums up the interval over all ranks, logs it, and stops the run if too much is broken."""
    rejects = _gather_rejects(interval.rejects, run.place)
    run.progress = replace(run.progress, rejected=run.progress.rejected + len(rejects))
    seconds = time.perf_counter() - interval.started
    step = run.progress.global_step
    if run.log:
        for reject in rejects:
            run.log.write(
                "rejected", step, key=reject.key, reason=reject.reason, detail=reject.detail
            )
        fields: dict[str, Any] = {
            "epoch": position.epoch,
            "step": position.step,
            "loss": result.loss.total.item(),
            **{name: value.item() for name, value in result.loss.terms.items()},
            **{name: value.item() for name, value in result.loss.metrics.items()},
            "logit_scale": result.logit_scale,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "samples": run.progress.samples,
            "rejected": run.progress.rejected,
            "samples_per_second": interval.steps * run.settings.batch_size / seconds,
            "data_wait": interval.data_wait / seconds,
        }
        run.log.write("step", step, **fields)
        left = (run.total_steps - step) * seconds / interval.steps
        print(console_line(step, run.total_steps, fields, left), flush=True)
    _check_reject_share(run)


def _check_reject_share(run: _Run) -> None:
    samples, rejected = run.progress.samples, run.progress.rejected
    allowed = run.settings.data.max_reject_share
    if samples >= _MIN_SAMPLES_FOR_SHARE and rejected > allowed * samples:
        raise ValueError(
            f"{rejected} of {samples} samples were rejected, more than "
            f"data.max_reject_share={allowed}; {run.settings.output}/{LOG_NAME} names each with "
            "its reason"
        )


def _gather_rejects(rejects: list[Reject], place: Place) -> list[Reject]:
    """All ranks' rejects, on all ranks; nothing but a count is sent while there are none."""
    count = torch.tensor(len(rejects), device=place.device)
    dist.all_reduce(count)
    if not int(count):
        return []
    parts: list[list[Reject]] = [[] for _ in range(place.world_size)]
    dist.all_gather_object(parts, rejects)
    return [reject for part in parts for reject in part]


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
