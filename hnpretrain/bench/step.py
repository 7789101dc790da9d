"""The whole training step: time, memory and exactness, ours beside open_clip's.

1. A step is forward of both towers, loss, backward and optimizer. Images are random tensors of the
   model's size, captions real; both are laid out before, as a loader does meanwhile. All trainers
   are in one process and take turns: whatever else the machine does slows them alike. Medians are
   told.
2. Peak memory is what a step adds to the weights and the optimizer's state: activations and
   gradients. A fresh process takes two steps, of which the second counts.
3. Exactness is that of a training: the first steps of one with the texts as `train` lays them out,
   and of one with padded rows through the model's own `encode_text`, have equal losses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import open_clip
import torch
from PIL import Image

from hnpretrain.bench.captions import CaptionRows, Captions
from hnpretrain.bench.contenders import clip_loss, negclip_loss
from hnpretrain.bench.machine import machine
from hnpretrain.bench.models import model_config
from hnpretrain.bench.processes import (
    WARM_UPS,
    added_at_peak,
    against_ours,
    in_processes,
    median_seconds,
    wait_for,
)
from hnpretrain.bench.trainers import Trainer, open_clip_optimizer, open_clip_trainer, our_trainer
from hnpretrain.data.loader import DataSettings
from hnpretrain.data.samples import Batch, Chunk
from hnpretrain.models import LoadedModel, ModelSettings, build
from hnpretrain.train.distributed import Place, process_group
from hnpretrain.train.settings import TrainSettings


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        arch: open_clip's name, or a json file with a model config.
        B: the batch.
        K: negatives a caption.
        dtype: of models.PRECISIONS.
        device: cpu or cuda.
        micro_batches: into how many parts the batch is split for the towers (gradient caching).
        repeats: steps of each trainer.
    """

    arch: str
    B: int
    K: int
    dtype: str
    device: str
    micro_batches: int
    repeats: int

    def settings(self, layout: str = "auto") -> TrainSettings:
        """Those of `hnpretrain train`; the rest are its defaults."""
        return TrainSettings(
            batch_size=self.B,
            micro_batches=self.micro_batches,
            precision=self.dtype,
            data=DataSettings(negatives=self.K),
            model=ModelSettings(config=model_config(self.arch), text_layout=layout),
        )


def compare(
    cases: Sequence[Case], captions: Captions, check_steps: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each case.

    Args:
        check_steps: of the trainings whose losses are compared; 0 compares none.

    Raises:
        ValueError: there are too few captions, before anything is measured; or an architecture
            does not do.
    """
    # One batch for the steps that are timed, or one a step that is checked.
    drawn = [
        [captions.draw(case.B, case.K, seed) for seed in range(max(1, check_steps))]
        for case in cases
    ]
    return map(partial(_compare, check_steps=check_steps), cases, drawn)


def _compare(case: Case, batches: Sequence[CaptionRows], check_steps: int) -> list[dict[str, Any]]:
    captions = batches[0]
    measured: dict[str, dict[str, Any]] = in_processes(_measure, case, captions, device=case.device)
    seconds = {name: values["seconds"] for name, values in measured.items()}
    rows = []
    for name, values in measured.items():
        row = {
            "case": name,
            **asdict(case),
            **values,
            **against_ours(seconds, name),
            "samples_per_second": case.B / seconds[name],
            "peak_bytes": in_processes(_peak_of, case, captions, name, device=case.device),
            "machine": machine(case.device),
        }
        rows.append(row)
    if check_steps:
        difference = _loss_difference(case, batches)
        rows[0] |= {"check_steps": check_steps, "loss_difference": difference}
    return rows


def _loss_difference(case: Case, batches: Sequence[CaptionRows]) -> float:
    """The largest of any step, relative, between texts as `train` lays them out and padded rows."""
    ours, padded = (
        in_processes(_losses, case, batches, layout, device=case.device)
        for layout in ("auto", "padded")
    )
    return max(abs(a - b) / abs(b) for a, b in zip(ours, padded, strict=True))


def _measure(case: Case, captions: CaptionRows) -> dict[str, dict[str, Any]]:
    """By trainer: fields of its row."""
    with process_group() as place:
        steps = _steps(case, captions, place)
        for step in steps.values():
            for _ in range(WARM_UPS[case.device]):
                step()
        seconds = median_seconds(steps, case.repeats, partial(wait_for, case.device))
    return {
        name: {"text_tokens": step.text_tokens, "seconds": seconds[name]}
        for name, step in steps.items()
    }


def _peak_of(case: Case, captions: CaptionRows, name: str) -> int:
    """Bytes that a step of the trainer adds to weights and the optimizer's state at its peak."""
    with process_group() as place:
        step = _steps(case, captions, place, only=name)[name]
        step()
        step.trainer.model.zero_grad()
        return added_at_peak(step, case.device)


def _losses(case: Case, batches: Sequence[CaptionRows], layout: str) -> list[float]:
    """Of the steps of a training that warms up over all of them, to its full rate.

    Without dropout, whose draws depend on the layout.
    """
    settings = case.settings(layout)
    with process_group() as place:
        loaded = _build(case)
        trainer = our_trainer(loaded.model.eval(), settings, place)
        losses = []
        for number, captions in enumerate(batches, 1):
            rate = settings.optimizer.lr * number / len(batches)
            step = _step(case, trainer, _chunk(loaded, captions, number), rate, place)
            losses.append(step().item())
        return losses


@dataclass(frozen=True)
class _Step:
    """A trainer with its batches, on its device."""

    trainer: Trainer
    batches: Sequence[Batch]
    rate: float

    def __call__(self) -> torch.Tensor:
        """Takes a step; the loss."""
        return self.trainer.step(self.batches, self.rate)

    @property
    def text_tokens(self) -> int:
        """Padding included; counted once, though gradient caching encodes them twice."""
        return sum(batch.texts.tokens for batch in self.batches)


def _steps(
    case: Case, captions: CaptionRows, place: Place, only: str | None = None
) -> dict[str, _Step]:
    """By trainer: all with equal weights and the same samples; or that of one trainer only."""
    chunk = _chunk(_build(case), captions, seed=0)
    rate = case.settings().optimizer.lr
    return {
        name: _step(case, make(), chunk, rate, place)
        for name, make in _makers(case, place).items()
        if only in (None, name)
    }


def _step(case: Case, trainer: Trainer, chunk: Chunk, rate: float, place: Place) -> _Step:
    batches = trainer.lay_out(chunk, case.micro_batches)
    return _Step(trainer, [batch.to(place.device) for batch in batches], rate)


def _build(case: Case) -> LoadedModel:
    torch.manual_seed(0)
    loaded = build(case.settings().model)
    loaded.model.train()
    return loaded


def _chunk(loaded: LoadedModel, captions: CaptionRows, seed: int) -> Chunk:
    token_BCL = torch.stack([loaded.tokenizer(row) for row in captions])
    size_CHW = loaded.preprocess_val(Image.new("RGB", (32, 32))).shape
    generator = torch.Generator().manual_seed(seed)
    return Chunk(
        tuple(map(str, range(len(captions)))),
        torch.randn(len(captions), *size_CHW, generator=generator),
        token_BCL,
        torch.ones(token_BCL.shape[:2], dtype=torch.bool),
    )


def _makers(case: Case, place: Place) -> dict[str, Callable[[], Trainer]]:
    """What makes each trainer: ours, then open_clip's, which share a model and its optimizer."""

    def ours() -> Trainer:
        return our_trainer(_build(case).model, case.settings(), place)

    @functools.cache
    def theirs() -> tuple[open_clip.CLIP, torch.optim.Optimizer]:
        model = _build(case).model.to(place.device)
        return model, open_clip_optimizer(model)

    def without() -> Trainer:
        return open_clip_trainer(*theirs(), clip_loss(), False, case.dtype)

    def appended() -> Trainer:
        return open_clip_trainer(*theirs(), negclip_loss(), True, case.dtype)

    if not case.K:
        return {"ours, no negatives": ours, "open_clip, no negatives": without}
    return {
        "ours, K negatives": ours,
        "open_clip, no negatives": without,
        "open_clip, K negatives": appended,
    }
