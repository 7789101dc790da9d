"""What a training is made of, on this rank, and how it is set up.

1. See that the ranks have the same settings and indexes, make the plan, build the model, choose the
   micro-batches, wrap the model in a DeepSpeed engine.
2. Restore the latest checkpoint of the run's folder, if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hnpretrain import config
from hnpretrain.data.loader import Loader, make_plan
from hnpretrain.data.mixture import Mixture, read_mixture
from hnpretrain.data.texts import TextLayout
from hnpretrain.losses import HardNegativeContrastiveLoss
from hnpretrain.models import LoadedModel, build
from hnpretrain.runs import latest_checkpoint
from hnpretrain.shards import storage
from hnpretrain.train.agreement import read_equal_mixture, require_equal_settings
from hnpretrain.train.caching import check_micro_batches
from hnpretrain.train.captions import sample_captions
from hnpretrain.train.checkpoint import (
    RUN_CONFIG_NAME,
    Checkpoints,
    Progress,
    Trained,
    find_latest,
    fits_parts,
    ranks_of,
    readable,
)
from hnpretrain.train.distributed import Place, on_all, on_main
from hnpretrain.train.ema import WeightAverage
from hnpretrain.train.engine import build_engine
from hnpretrain.train.evaluation import Evaluation, load_benchmarks
from hnpretrain.train.finite import LossScale
from hnpretrain.train.flops import FlopsCounter
from hnpretrain.train.log import RunLog
from hnpretrain.train.machine import local_ranks
from hnpretrain.train.memory import Job, choose, told
from hnpretrain.train.optimizer import warmup_warning
from hnpretrain.train.peaks import device_peak
from hnpretrain.train.profiling import StepProfiler, require_rank
from hnpretrain.train.settings import TrainSettings, require_shards
from hnpretrain.train.towers import lay_out_for
from hnpretrain.train.trackers import Tracker, open_trackers, require_packages

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from hnpretrain.eval.benchmarks.base import Benchmark


@dataclass
class Run:
    """What a run is made of, on this rank."""

    settings: TrainSettings
    place: Place
    mixture: Mixture
    loader: Loader
    model: LoadedModel
    engine: DeepSpeedEngine
    loss: HardNegativeContrastiveLoss
    average: WeightAverage | None
    checkpoints: Checkpoints
    progress: Progress
    total_steps: int
    evaluation: Evaluation
    profiler: StepProfiler
    log: RunLog | None  # on the main rank
    peak: float | None  # likewise, where it is known: FLOP/s of the device
    flops: FlopsCounter | None  # with it
    noted: set[str] = field(default_factory=set)  # notes on the data that were told

    @property
    def trained(self) -> Trained:
        """What its checkpoints are made of."""
        return Trained(self.engine, self.model, self.loss, self.average)


def require_fit(settings: TrainSettings, ranks: int) -> None:
    """Sees, before they are started, that so many ranks could begin the run, or go on with it.

    Raises:
        ValueError: the settings name no data, or they, the data and the number do not fit together.
        OSError: the indexes could not be read.
    """
    require_shards(settings)
    require_rank(settings.profile, ranks)
    latest = latest_checkpoint(Path(settings.output))
    if latest:
        fits_parts(latest, settings.zero_stage, ranks)
    settings = _with_streams(settings, _read_config(latest) if latest else None)
    mixture = read_mixture(settings.data.weights)
    make_plan(settings.data, mixture, settings.batch_size, settings.seed, ranks)


def set_up(settings: TrainSettings, place: Place) -> Run:
    """Builds what a training is made of and restores its latest checkpoint; collective.

    Raises:
        ValueError, OSError: see `loop.train`.
    """
    require_equal_settings(settings)
    require_rank(settings.profile, place.world_size)
    on_main(lambda: require_packages(settings.log))
    benchmarks: list[Benchmark] = []
    on_all(lambda: benchmarks.extend(load_benchmarks(settings.evaluation)))
    folder = Path(settings.output)
    latest = find_latest(folder)
    before = on_main(lambda: _read_config(latest)) if latest else None
    settings = _with_streams(settings, before)
    ranks = on_main(lambda: ranks_of(latest)) if latest else 0
    if before and not settings.micro_batches and ranks == place.world_size:
        # Likewise of micro-batches, on which draws depend; on other ranks they differ anyway.
        settings = replace(settings, micro_batches=before.micro_batches)
    mixture = read_equal_mixture(settings.data.weights)
    plan = make_plan(settings.data, mixture, settings.batch_size, settings.seed, place.world_size)
    settings = replace(settings, data=replace(settings.data, streams=plan.streams))

    torch.manual_seed(settings.seed)  # the same weights on every rank
    model = build(settings.model, with_weights=latest is None)
    loss = settings.loss.make(settings.data.negatives).to(place.device)
    layout = lay_out_for(model.model, loss, settings).layout
    settings = _with_micro_batches(settings, place, mixture, model, loss, layout)
    total_steps = settings.epochs * plan.steps_per_epoch
    peak, flops = None, None
    if place.is_main:
        peak = device_peak(place.device, settings.precision, settings.log.peak_tflops)
    if peak:  # of the model as it is before DeepSpeed may cut it
        flops = FlopsCounter(model.model, loss.needs_parts())
    evaluation = Evaluation(
        settings.evaluation,
        benchmarks,
        model,
        settings.zero_stage,
        plan.steps_per_epoch,
        total_steps,
        place,
    )
    engine = build_engine(model.model, loss, settings, place)
    identity = _identity(settings, mixture, model, loss)
    resolved = config.to_yaml(settings)
    checkpoints = Checkpoints(folder, settings.checkpoint, identity, resolved, place)
    average = WeightAverage(engine, model.model, settings.ema) if settings.ema else None
    progress = checkpoints.restore(Trained(engine, model, loss, average), latest)
    if progress is None:
        progress = Progress(loss_scale=LossScale.first_of(settings.precision))
    loader = Loader(
        settings.data,
        mixture,
        plan,
        model.preprocess_train,
        model.tokenizer,
        layout,
        place.rank,
        place.world_size,
        settings.micro_batches,
        pin_memory=place.device.type == "cuda",
    )
    logs: list[RunLog] = []

    def begin() -> None:
        _announce(settings, before, place, mixture, loader, progress)
        if not peak and place.device.type == "cuda":
            name = torch.cuda.get_device_name(place.device)
            print(f"no MFU: the peak of {name} is not known; log.peak_tflops tells it")
        trackers: list[Tracker] = []
        if progress.global_step < total_steps:  # else these settings train nothing
            storage.write_bytes(str(folder / RUN_CONFIG_NAME), resolved.encode())
            told = config.to_dict(settings)
            trackers = open_trackers(settings.log, folder, progress.global_step, told)
        logs.append(RunLog(folder, progress.global_step, trackers))

    on_main(begin)
    return Run(
        settings=settings,
        place=place,
        mixture=mixture,
        loader=loader,
        model=model,
        engine=engine,
        average=average,
        loss=loss,
        checkpoints=checkpoints,
        progress=progress,
        total_steps=total_steps,
        evaluation=evaluation,
        profiler=StepProfiler(settings.profile, folder, place.rank),
        log=logs[0] if logs else None,
        peak=peak,
        flops=flops,
    )


def _with_streams(settings: TrainSettings, before: TrainSettings | None) -> TrainSettings:
    """A run that goes on keeps the number of streams that was chosen when it began."""
    if before is None or settings.data.streams:
        return settings
    return replace(settings, data=replace(settings.data, streams=before.data.streams))


def _with_micro_batches(
    settings: TrainSettings,
    place: Place,
    mixture: Mixture,
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
        captions = sample_captions(settings.data, mixture, model.tokenizer, settings.seed)
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
    mixture: Mixture,
    model: LoadedModel,
    loss: HardNegativeContrastiveLoss,
) -> dict[str, Any]:
    """What a run cannot change on its way; see Checkpoints."""
    return {
        "data.shards": mixture.fingerprint,
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
        "data.decode": settings.data.decode,
        "data.max_pixels": settings.data.max_pixels,
        "data.negatives": settings.data.negatives,
        # torch restores these with the optimizer, so a change would be ignored in silence.
        "optimizer.weight_decay": settings.optimizer.weight_decay,
        "optimizer.betas": list(settings.optimizer.betas),
        "optimizer.eps": settings.optimizer.eps,
    }


def _announce(
    settings: TrainSettings,
    before: TrainSettings | None,
    place: Place,
    mixture: Mixture,
    loader: Loader,
    progress: Progress,
) -> None:
    plan = loader.plan
    print(
        f"{plan.samples} samples in {plan.shards} shards | "
        f"{plan.steps_per_epoch} steps of {plan.batch_size} an epoch, {settings.epochs} epochs | "
        f"{plan.streams} streams on {place.world_size} ranks ({place.device.type}) | "
        f"{plan.left_out} samples left out of an epoch"
    )
    if len(mixture.data_sets) > 1:
        for each, left_out in zip(mixture.data_sets, plan.left_out_of, strict=True):
            print(f"  {left_out} of {config.without_secrets(each.folder)}")
    if settings.data.negatives > mixture.max_negatives:
        print(
            f"data.negatives={settings.data.negatives}, but these shards hold at most "
            f"{mixture.max_negatives} a caption: the rest is masked"
        )
    warning = warmup_warning(settings.optimizer, settings.epochs * plan.steps_per_epoch)
    if warning:
        print(warning)
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
