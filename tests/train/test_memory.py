"""The memory estimate, and the number of micro-batches that is chosen by it."""

import copy
from dataclasses import replace

import pytest
import torch

from hnpretrain import config
from hnpretrain.data.mixture import read_mixture
from hnpretrain.data.samples import Batch
from hnpretrain.models import ModelSettings, build
from hnpretrain.models.texts import choose_layout
from hnpretrain.train import machine, memory, twins
from hnpretrain.train.caching import forward_backward
from hnpretrain.train.captions import sample_captions
from hnpretrain.train.engine import build_engine, optimizer_step
from hnpretrain.train.memory import Job, choose, estimate, measure
from hnpretrain.train.settings import TrainSettings
from hnpretrain.train.towers import Towers
from tests.support.training import loss_lines, train_here, write_recipe

CPU = torch.device("cpu")
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 64,
        "layers": 4,
        "width": 64,
        "head_width": 32,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 4,
    },
}


def job_of(shards, *overrides, ranks=1, batch_size=16, **model):
    data = [f"data.shards={shards}", "data.negatives=2", f"batch_size={batch_size}"]
    settings = config.load(TrainSettings, None, [*data, *overrides])
    settings = replace(settings, model=ModelSettings(**{"config": MODEL, **model}))
    loaded = build(settings.model)
    loss = settings.loss.make(settings.data.negatives)
    layout = choose_layout(loaded.model, words=loss.needs_parts()).layout
    captions = sample_captions(
        settings.data, read_mixture(settings.data.weights), loaded.tokenizer, settings.seed
    )
    return Job(settings, loaded.model, loss, layout, captions, ranks, CPU)


@pytest.mark.parametrize(
    "overrides", [(), ("precision=bf16",), ("loss.objective=fscclip",)], ids=str
)
@pytest.mark.parametrize("again", [False, True])
def test_tensors_without_data_take_what_tensors_with_data_do(shards, overrides, again):
    job = job_of(shards, *overrides, grad_checkpointing=again)
    towers = Towers(
        copy.deepcopy(job.model), memory.autocast_dtype(job.settings), job.loss.needs_parts()
    )
    for parameter in towers.parameters():
        parameter.register_post_accumulate_grad_hook(twins._forget_gradient)
    texts = job.captions.laid_out(job.layout, 16)
    batch = Batch((), torch.randn(16, 3, 64, 64), texts, job.captions.mask_BC[:16, 1:])
    with memory._Alive([batch.image_BCHW, *towers.state_dict().values()]) as alive:
        features = towers(batch)
        sum(x.float().sum() for x in features if x is not None and x.requires_grad).backward()
    assert measure(job).of(16) == pytest.approx(alive.most, rel=0.01)


def test_what_is_alive_at_once_is_counted():
    known = torch.ones(500)
    with memory._Alive([known]) as alive:
        a = known * 2  # 2000 bytes
        b = a.view(5, 100)[0]  # the same
        c = a + 1  # 4000
        del a
        d = c * b.sum()  # 6004: the view keeps it
        del b, c
        e = torch.cat([d, d])  # 6000
    assert alive.most == 6004
    del e


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_optimizer_holds_what_is_estimated(shards, world_of_one, stage):
    job = job_of(shards, f"zero_stage={stage}", "micro_batches=1")
    expected = estimate(job, measure(job), 1).parts
    engine = build_engine(job.model, job.loss, job.settings, world_of_one)
    batch = Batch(
        (),
        torch.randn(16, 3, 64, 64),
        job.captions.laid_out(job.layout, 16),
        job.captions.mask_BC[:16, 1:],
    )
    forward_backward(engine, job.loss, [batch], lambda _: None)
    optimizer_step(engine)
    optimizer = engine.optimizer
    moments = optimizer.optimizer.state if stage else optimizer.state
    tensors = [x for state in moments.values() for x in state.values() if torch.is_tensor(x)]
    if stage in (1, 2):
        tensors += optimizer.single_partition_of_fp32_groups
    elif stage == 3:
        tensors += optimizer.fp32_partitioned_groups_flat
    assert expected["optimizer"] == pytest.approx(memory.tensor_bytes(tensors), rel=0.01)


def test_on_a_gpu_what_is_freed_is_not_counted_twice(shards):
    """The towers' activations are gone when gradients are copied; ZeRO 3's gradients never are."""
    gpu = torch.device("cuda")
    activations = measure(job_of(shards))
    plain, cut = (replace(job_of(shards, f"zero_stage={stage}"), device=gpu) for stage in (0, 3))
    for job in (plain, cut):
        taken = estimate(job, activations, 1)
        parts = taken.parts
        assert parts["process"] == 0
        backward = parts["gradients"] + parts["copies of gradients"]
        apart = parts["activations"] + (job is cut) * parts["gradients"]
        fixed = sum(parts.values()) - parts["activations"] - backward
        assert taken.peak == fixed + max(apart, backward)
        # Many micro-batches leave the rest.
        assert estimate(job, activations, 16).peak <= taken.peak
    embedding = 4 * plain.model.token_embedding.weight.numel()
    assert estimate(cut, activations, 1).parts["gathered weights"] > embedding


def test_what_saves_memory_is_seen(shards):
    plain = measure(job_of(shards))
    assert measure(job_of(shards, grad_checkpointing=True)).per_sample < 0.4 * plain.per_sample
    assert measure(job_of(shards, lock_image=True)).per_sample < 0.8 * plain.per_sample
    # Activations of half the size, and copies of the weights whatever the batch.
    halved = measure(job_of(shards, "precision=bf16"))
    assert halved.per_sample < 0.7 * plain.per_sample
    assert halved.fixed > plain.fixed


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_shares_the_optimizer_among_ranks(shards, stage):
    job = job_of(shards, f"zero_stage={stage}", batch_size=64, ranks=4)
    activations = measure(job)
    four = estimate(job, activations, 1).parts
    alone = estimate(replace(job, ranks=1), activations, 1).parts
    assert four["optimizer"] == pytest.approx(alone["optimizer"] / 4, rel=1e-3)
    assert (four["gradients"] < alone["gradients"]) == (stage >= 2)
    assert (four["weights"] < alone["weights"]) == (stage == 3)


def test_the_fewest_micro_batches_that_fit(shards, monkeypatch):
    monkeypatch.setattr(machine, "resident", lambda: 10**9)
    job = job_of(shards)
    activations = measure(job)
    peaks = {number: estimate(job, activations, number).peak for number in (1, 2, 4, 8, 16)}
    assert sorted(peaks.values(), reverse=True) == list(peaks.values())
    for number, peak in peaks.items():
        monkeypatch.setattr(machine, "budget", lambda *_, room=peak: room)
        choice = choose(job, 1)
        assert choice.micro_batches == number
        assert choice.note == ""
    monkeypatch.setattr(machine, "budget", lambda *_: 10**6)
    choice = choose(job, 1)
    assert choice.micro_batches == 16
    assert "there are 1.0 MB" in choice.note
    assert "set model.grad_checkpointing=true, lower batch_size or take" in choice.note


def test_a_number_that_is_set_is_kept(shards, monkeypatch):
    monkeypatch.setattr(machine, "resident", lambda: 10**9)
    job = job_of(shards, "micro_batches=2")
    room = estimate(job, measure(job), 8).peak
    monkeypatch.setattr(machine, "budget", lambda *_: room)
    choice = choose(job, 1)
    assert choice.micro_batches == 2
    assert "if it fails, set micro_batches=8, set model.grad_checkpointing=true" in choice.note


def test_batch_norm_is_never_split(shards, monkeypatch):
    monkeypatch.setattr(machine, "budget", lambda *_: 10**6)
    resnet = {**MODEL, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}
    assert choose(job_of(shards, config=resnet), 1).micro_batches == 1


def test_a_model_that_looks_at_values_is_trained_unseen(shards, monkeypatch):
    forward = Towers.forward

    def look(self, batch):
        assert batch.image_BCHW.max() > 0
        return forward(self, batch)

    monkeypatch.setattr(Towers, "forward", look)
    choice = choose(job_of(shards), 1)
    assert choice.micro_batches == 1
    assert choice.memory is None
    assert "memory cannot be foreseen for this model (DataDependent" in choice.note
    assert "in micro_batches=1. If memory runs out, set one of 1, 2, 4, 8, 16" in choice.note


def test_a_training_says_once_what_will_not_do_and_goes_on(tmp_path, shards, monkeypatch, capsys):
    monkeypatch.setattr(machine, "budget", lambda *_: 10**6)
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8, micro_batches=0)
    train_here(recipe, f"output={tmp_path}/run")
    assert len(loss_lines(tmp_path / "run")) == 5
    assert capsys.readouterr().out.count("It is an estimate, so training goes on") == 1
    assert "micro_batches: 8\n" in (tmp_path / "run/config.yaml").read_text()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limits_of_control_groups(tmp_path):
    """As Slurm sets them, on a group above the process's own."""
    cgroup = tmp_path / "sys/fs/cgroup"
    write(tmp_path / "proc/self/cgroup", "0::/job_7/task_0\n")
    write(cgroup / "job_7/memory.max", "8000\n")
    write(cgroup / "job_7/memory.current", "5000\n")
    write(cgroup / "job_7/memory.stat", "anon 4000\ninactive_file 900\n")
    write(cgroup / "job_7/task_0/memory.max", "max\n")
    write(cgroup / "job_7/task_0/memory.current", "5000\n")
    write(cgroup / "job_7/task_0/memory.stat", "anon 4000\n")
    assert list(machine._of_control_groups(tmp_path)) == [3900]

    write(tmp_path / "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/box\n")
    write(cgroup / "memory/box/memory.limit_in_bytes", "2000\n")
    write(cgroup / "memory/box/memory.usage_in_bytes", "2500\n")
    write(cgroup / "memory/box/memory.stat", "total_inactive_file 100\n")
    assert list(machine._of_control_groups(tmp_path)) == [0]
    assert list(machine._of_control_groups(tmp_path / "nowhere")) == []


def test_ranks_share_a_machine():
    alone, two = (machine.budget(CPU, ranks) for ranks in (1, 2))
    own = 0.8 * machine.resident()
    assert machine.resident() > 10**8
    assert two - own == pytest.approx((alone - own) / 2, rel=0.1)
