"""What a training's step takes of memory, and into how many micro-batches it must be split for it.

Weights, gradients and the optimizer's state are counted. What the towers take of a batch is found
by running them, forward and backward, on tensors without data, while the bytes are counted that
would be alive at once. Two sizes of the batch tell what any micro-batch takes (under autocast,
copies of the weights) from what each sample takes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnpretrain.data.texts import TextLayout
from hnpretrain.losses import HardNegativeContrastiveLoss
from hnpretrain.losses.blocked import CPU_TILE_ELEMENTS, GPU_TILE_ELEMENTS
from hnpretrain.models.build import one_line
from hnpretrain.train import machine
from hnpretrain.train.caching import learns_batch_statistics, possible_micro_batches
from hnpretrain.train.captions import CaptionSample
from hnpretrain.train.engine import LIVE_SHARE, autocast_dtype, reduce_bucket
from hnpretrain.train.machine import in_words
from hnpretrain.train.settings import TrainSettings
from hnpretrain.train.towers import Features, Towers
from hnpretrain.train.twins import image_shape, quiet, twin_batch, twin_towers

_FLOAT = 4  # bytes
# Without ZeRO, DeepSpeed sums gradients over the ranks in a copy, so many at a time.
_FLAT_GRADIENTS = 500_000_000
# Tensors of the size of features that are there with them: their gradients, in two forms, and with
# patches and words what their term keeps for its backward pass.
_WITH_FEATURES = 3
_WITH_PARTS = 8


@dataclass(frozen=True)
class Job:
    """What is estimated: the training of one rank.

    Attributes:
        settings: of the run.
        model: to be trained.
        loss: likewise.
        layout: of the texts.
        captions: some of the data set.
        ranks: W.
        device: where it is trained.
    """

    settings: TrainSettings
    model: open_clip.CLIP
    loss: HardNegativeContrastiveLoss
    layout: TextLayout
    captions: CaptionSample
    ranks: int
    device: torch.device

    @property
    def batch_size(self) -> int:
        """Of one rank."""
        return self.settings.batch_size // self.ranks


@dataclass(frozen=True)
class Activations:
    """What the towers take of a batch, beside weights and their gradients, in bytes.

    Attributes:
        fixed: whatever the batch's size.
        per_sample: for each sample.
        features: of them, what the loss gets of a sample.
        travelling: of them, what goes to other ranks.
    """

    fixed: float
    per_sample: float
    features: float
    travelling: float

    def of(self, samples: int) -> int:
        """Bytes that a batch of this size takes."""
        return int(self.fixed + samples * self.per_sample)


@dataclass(frozen=True)
class Memory:
    """What one rank takes at most in a step, in bytes.

    Attributes:
        parts: by name.
        peak: of all together; less than their sum where not all are there at once.
    """

    parts: Mapping[str, int]
    peak: int


@dataclass(frozen=True)
class Choice:
    """A number of micro-batches.

    Attributes:
        micro_batches: the number.
        budget: bytes that there are.
        memory: what it takes; None if it cannot be foreseen.
        note: what a user should know about it, or empty.
    """

    micro_batches: int
    budget: int
    memory: Memory | None
    note: str = ""


def choose(job: Job, local_ranks: int) -> Choice:
    """The fewest equal micro-batches that fit into memory; if none do, those of one sample.

    If the settings have a number, that one.

    Args:
        local_ranks: processes that train on this machine.
    """
    room = machine.budget(job.device, local_ranks)
    possible = possible_micro_batches(job.batch_size)
    if learns_batch_statistics(job.model):
        possible = [1]  # see caching.check_micro_batches
    set_number = job.settings.micro_batches
    try:
        activations = measure(job)
    except Exception as error:  # a tower may ask for values, and there are none
        number = set_number or possible[0]
        numbers = ", ".join(map(str, possible))
        note = (
            f"memory cannot be foreseen for this model ({type(error).__name__}: "
            f"{one_line(error)[:200]}); the {job.batch_size} samples of a rank are encoded in "
            f"micro_batches={number}. If memory runs out, set one of {numbers}"
        )
        return Choice(number, room, None, note)
    memories = (estimate(job, activations, number) for number in possible)
    fitting = next((n for n, x in zip(possible, memories, strict=False) if x.peak <= room), None)
    number = set_number or fitting or possible[-1]
    memory = estimate(job, activations, number)
    note = "" if memory.peak <= room else _too_little(job, memory, room, number, fitting)
    return Choice(number, room, memory, note)


def _too_little(job: Job, memory: Memory, room: int, number: int, fitting: int | None) -> str:
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:4]
    named = ", ".join(f"{name} {in_words(size)}" for name, size in largest)
    remedies = ["lower batch_size", "take more processes"]
    if not job.settings.model.grad_checkpointing:
        remedies.insert(0, "set model.grad_checkpointing=true")
    if job.settings.zero_stage < 3 and job.ranks > 1:
        remedies.insert(0, "raise zero_stage")
    if fitting:
        remedies.insert(0, f"set micro_batches={fitting}")
    *others, last = remedies
    return (
        f"with micro_batches={number} a rank of {job.batch_size} samples is estimated to take "
        f"{in_words(memory.peak)}, and there are {in_words(room)} ({named}). It is an estimate, "
        f"so training goes on; if it fails, {', '.join(others)} or {last}"
    )


def told(choice: Choice, batch_size: int) -> str:
    """The choice for a rank's batch in a line."""
    if choice.note:
        return choice.note
    assert choice.memory is not None
    return (
        f"{batch_size} samples a rank in micro_batches={choice.micro_batches}: a step takes about "
        f"{in_words(choice.memory.peak)} of {in_words(choice.budget)}"
    )


def estimate(job: Job, activations: Activations, micro_batches: int) -> Memory:
    """What a step takes with so many micro-batches."""
    stage = job.settings.zero_stage
    weights = tensor_bytes(job.model.state_dict().values())
    trained = tensor_bytes(p for p in job.model.parameters() if p.requires_grad)
    part = trained // job.ranks if stage else trained
    # Before gradients are summed over the ranks they are copied, to one tensor or into ZeRO's
    # bucket; what ZeRO keeps of them is copied once (stage 1: twice) more for the optimizer.
    copies = [min(trained, _FLOAT * _FLAT_GRADIENTS), 2 * part, part, part][stage]
    parts = {
        "process": _process(job),
        "weights": weights if stage < 3 else weights // job.ranks,
        # Adam's two moments, and the copy of the weights that ZeRO steps on.
        "optimizer": (3 if stage else 2) * part,
        "gradients": part if stage >= 2 else trained,
        "copies of gradients": copies,
        "activations": activations.of(job.batch_size // micro_batches),
        "batch and loss": _of_batch(job, activations, micro_batches),
    }
    if job.settings.ema:
        parts["average of weights"] = trained if stage < 3 else part
    if stage:
        parts["bucket of gradients"] = _FLOAT * reduce_bucket(job.model, stage)
    on_cpu = job.device.type == "cpu"
    if stage == 3:
        parts["gathered weights"] = weights if on_cpu else _gathered(job)
    peak = sum(parts.values())
    if not on_cpu:
        # What the towers took is free again when gradients are copied. On a CPU too, but there the
        # C library keeps most of what was freed, also of the weights before stage 3 cut them.
        there = micro_batches > 1 or stage == 3  # are gradients, while the towers run
        forward = parts["activations"] + there * parts["gradients"]
        backward = parts["gradients"] + copies
        peak -= parts["activations"] + backward - max(forward, backward)
    return Memory(parts, peak)


def _gathered(job: Job) -> int:
    """Weights that stage 3 has whole at a time on a GPU."""
    parameters = dict(job.model.named_parameters())
    live = max(sum(map(_size, parameters.values())) // LIVE_SHARE, *map(_size, parameters.values()))
    # A weight is whole as long as the module runs that reads it. Attention's own module does not
    # run where texts are trees, so it is both towers together.
    read_by_trees = (
        _size(parameter)
        for name, parameter in parameters.items()
        if job.layout.kind == "trees" and "in_proj" in name and not name.startswith("visual.")
    )
    return live + sum(read_by_trees)


def _of_batch(job: Job, activations: Activations, micro_batches: int) -> int:
    """What is there of a rank's whole batch, beside what the towers take of a micro-batch."""
    copies = _WITH_PARTS if job.loss.needs_parts() else _WITH_FEATURES
    features = copies * job.batch_size * activations.features
    blocks = 2 if job.loss.comm == "ring" else job.ranks
    others = 2 * (blocks - 1) * job.batch_size * activations.travelling  # with their gradients
    tiles = CPU_TILE_ELEMENTS if job.device.type == "cpu" else GPU_TILE_ELEMENTS
    # Micro-batches go to a GPU one at a time.
    on_device = job.batch_size if job.device.type == "cpu" else job.batch_size // micro_batches
    images = on_device * _image_bytes(job.model)
    return int(features + others + 3 * _FLOAT * tiles + images)


def _process(job: Job) -> int:
    """On a CPU, what this process holds beside the model; on a GPU that is no longer free."""
    if job.device.type != "cpu":
        return 0
    return max(0, machine.resident() - tensor_bytes(job.model.state_dict().values()))


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """What the data of tensors take."""
    return sum(map(_size, tensors))


def _size(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _image_bytes(model: open_clip.CLIP) -> int:
    channels, height, width = image_shape(model)
    return _FLOAT * channels * height * width


def measure(job: Job) -> Activations:
    """What the towers take of a batch, without computing it.

    Raises:
        Exception: of any kind, by towers that look at values.
    """
    most = min(len(job.captions), job.batch_size)
    least = max(1, most // 2)
    autocast, parts = autocast_dtype(job.settings), job.loss.needs_parts()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with quiet():
        towers = twin_towers(job.model, autocast, parts, job.device, mode)
        peak, features = _take(job, towers, mode, most)
        slope = peak / most
        if least < most:
            slope = (peak - _take(job, towers, mode, least)[0]) / (most - least)
    travelling = features.text_BD.nbytes
    if job.loss.scope == "global" and features.negative_BKD is not None:
        travelling += features.negative_BKD.nbytes
    return Activations(
        fixed=peak - most * slope,
        per_sample=slope,
        features=sum(x.nbytes for x in features if x is not None and x.ndim) / most,
        travelling=travelling / most,
    )


def _take(job: Job, towers: Towers, mode: FakeTensorMode, samples: int) -> tuple[int, Features]:
    """Bytes that are alive at once in a forward and a backward pass, and what comes out."""
    texts = job.captions.laid_out(job.layout, samples)
    mask_BK = job.captions.mask_BC[:samples, 1:]
    batch = twin_batch(job.model, samples, texts, mask_BK, job.device, mode)
    with mode, _Alive([batch.image_BCHW, *towers.state_dict().values()]) as alive:
        features = towers(batch)
        with torch.autograd.set_multithreading_enabled(False):  # else a GPU's pass is not seen
            sum(x.float().sum() for x in features if x is not None and x.requires_grad).backward()
    return alive.most, features


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and alive at once.

    Args:
        known: tensors that are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.most = 0
        self._now = 0
        self._sizes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for x in known:
            self._sizes[x.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[storage] = size
        weakref.finalize(storage, self._free, size)
        self._now += size
        self.most = max(self.most, self._now)

    def _free(self, size: int) -> None:
        self._now -= size
