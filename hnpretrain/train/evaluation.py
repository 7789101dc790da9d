"""Evaluation of the model while it trains, on benchmarks that lie in local files.

All ranks take part: each encodes its share of a benchmark's batches, and all get all features, so
that no rank waits long for others. Scores are those of `hnpretrain eval` on a checkpoint of the
step. Nothing is drawn and every module gets its mode back: the training does not notice. Nor does
it end with an evaluation that fails, on an image that cannot be read for example: that is told.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import open_clip
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hnpretrain.models import LoadedModel
from hnpretrain.models.build import one_line
from hnpretrain.train.distributed import Place, on_all, on_main, whole_tensors
from hnpretrain.train.log import RunLog

if TYPE_CHECKING:  # at run time where there are benchmarks: pyarrow is slow to import
    from hnpretrain.eval.benchmarks.base import Benchmark
    from hnpretrain.eval.results import Result

T = TypeVar("T")


@dataclass
class EvaluationSettings:
    """Section `evaluation:` of a training config.

    Attributes:
        benchmarks: NAME=DATA[,IMAGES] each, as `hnpretrain eval --benchmark` takes them.
        every: steps between evaluations; 0 evaluates after each epoch. The run's end always has
            one.
        batch_size: images or captions at a time, of each rank.
    """

    benchmarks: list[str] = field(default_factory=list)
    every: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"evaluation.every={self.every} must not be negative")
        if self.batch_size < 1:
            raise ValueError(f"evaluation.batch_size={self.batch_size} must be at least 1")


def load_benchmarks(settings: EvaluationSettings) -> list[Benchmark]:
    """Reads the benchmarks' files and checks them all.

    Raises:
        ValueError: one of them is unknown, or its files are missing or malformed.
    """
    if not settings.benchmarks:
        return []
    from hnpretrain.eval import benchmarks

    requests = [
        benchmarks.read_request(text, "evaluation.benchmarks") for text in settings.benchmarks
    ]
    return [benchmarks.load(*request) for request in requests]


class Evaluation:
    """Evaluates a run's model after some of its steps.

    Args:
        settings: section `evaluation:`.
        benchmarks: `load_benchmarks` of it.
        model: to be trained; whole, as it is before DeepSpeed cuts its weights.
        zero_stage: which cuts them if it is 3. They are then evaluated in a copy, whole on each
            rank, which lies in main memory in between.
        steps_per_epoch, total_steps: of the run.
        place: this process.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        benchmarks: Sequence[Benchmark],
        model: LoadedModel,
        zero_stage: int,
        steps_per_epoch: int,
        total_steps: int,
        place: Place,
    ) -> None:
        self._settings = settings
        self._benchmarks = benchmarks
        self._model = model
        self._copy = copy.deepcopy(model.model) if benchmarks and zero_stage == 3 else None
        self._every = settings.every or steps_per_epoch
        self._total_steps = total_steps
        self._place = place

    def after_step(self, step: int, log: RunLog | None) -> None:
        """Evaluates if it is time to; collective.

        Args:
            step: how many steps have been taken.
            log: of the run, on the main rank.
        """
        if self._is_due(step):
            self._evaluate(step, log)

    def make_up(self, step: int, log: RunLog | None) -> None:
        """Evaluates where a run goes on, if it stopped there before it could; collective."""
        if not self._is_due(step) or step in (0, self._total_steps):
            return
        if not on_main(lambda: log is not None and log.holds("evaluation", step)):
            self._evaluate(step, log)

    def _is_due(self, step: int) -> bool:
        return bool(self._benchmarks) and (step % self._every == 0 or step == self._total_steps)

    def _evaluate(self, step: int, log: RunLog | None) -> None:
        started = time.perf_counter()
        try:
            results = self._run()
        except (ValueError, OSError) as error:  # all ranks raise it (`on_all`)
            if log:
                why = one_line(error)
                print(f"evaluation at step {step} failed: {why}; the training goes on", flush=True)
                log.write("evaluation failed", step, error=why)
            return
        seconds = time.perf_counter() - started
        if log:
            scores = {
                result.dataset: {score.name: score.accuracy.value for score in result.scores}
                for result in results
            }
            log.write("evaluation", step, seconds=seconds, scores=scores)
            for result in results:
                told = " | ".join(
                    f"{score.name} {score.accuracy.value:.4f}"
                    for score in result.scores
                    if not score.dimension  # those of single groups are in the log
                )
                print(f"evaluation at step {step} | {result.dataset} | {told}", flush=True)

    def _run(self) -> list[Result]:
        """Raises ValueError or OSError: one of them met it, on all ranks."""
        from hnpretrain.eval.encode import Encoder
        from hnpretrain.eval.processes import AmongProcesses
        from hnpretrain.eval.scorers import Cosine

        with self._whole() as model, _statistics_of_main(model):
            encoder = Encoder(
                model,
                self._model.preprocess_val,
                self._model.tokenizer,
                self._place.device,
                self._settings.batch_size,
                share=AmongProcesses(self._place.rank, self._place.world_size, _gathered),
            )
            # What a rank alone meets after the last batch, all must hear of.
            runs = (
                partial(_fitting, partial(each.run, encoder, Cosine())) for each in self._benchmarks
            )
            return [on_all(run)[0] for run in runs]

    @contextmanager
    def _whole(self) -> Iterator[open_clip.CLIP]:
        """The model with whole weights on this rank's device; collective."""
        if self._copy is None:
            yield self._model.model
            return
        # Not the model itself with its weights gathered: DeepSpeed records the order in which
        # modules run, and takes them apart when they are done.
        targets = self._copy.state_dict()
        for name, tensor in whole_tensors(self._model.model):
            targets[name].copy_(tensor)
        whole = self._copy

        def move() -> None:
            whole.to(self._place.device)

        try:
            on_all(partial(_fitting, move))
            yield whole
        finally:
            whole.to("cpu")


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _fitting(work: Callable[[], T]) -> T:
    """What `work` gives; ValueError if the device's memory is too small for it."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        raise ValueError(f"lower evaluation.batch_size: {one_line(error)}") from error


@contextmanager
def _statistics_of_main(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm knows what it has seen on the main rank, as a checkpoint does; collective.

    Otherwise ranks differ in that.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    statistics = [tensor for norm in norms for tensor in norm.buffers(recurse=False)]
    own = [tensor.clone() for tensor in statistics]
    for tensor in statistics:
        dist.broadcast(tensor, 0)
    try:
        yield
    finally:
        for tensor, value in zip(statistics, own, strict=True):
            tensor.copy_(value)
