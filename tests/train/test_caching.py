"""Gradient caching: a batch in micro-batches trains as the batch in one piece does.

What is compared of two trainings is how far apart their weights are after their last step, as a
share of how far these have moved since the first: |a - b| / |a - start|, over all weights.
Gradients are clipped to a norm that leaves the rounding of those that are zero but for it (of the
attention's keys, their biases' are) below Adam's eps: else Adam would make full steps of it.
"""

import copy
import shutil

import pytest
import torch

from hnpretrain import config
from hnpretrain.data.loader import Loader, Position, make_plan
from hnpretrain.data.mixture import read_mixture
from hnpretrain.models import ModelSettings, build, load
from hnpretrain.models.texts import choose_layout
from hnpretrain.train import loop, machine
from hnpretrain.train.caching import check_micro_batches, forward_backward
from hnpretrain.train.engine import build_engine
from hnpretrain.train.settings import TrainSettings
from hnpretrain.train.towers import Towers
from tests.support.datasets import tile, write_dataset
from tests.support.training import loss_lines, train_here
from tests.train.many_runs import errors_of, train_all

CLIPPED = "optimizer.max_grad_norm=0.5"
PATCH_DROPOUT = "model.config.vision_cfg.patch_dropout=0.5"
AGAIN = "model.grad_checkpointing=true"
DEEP = ("model.config.vision_cfg.layers=3", "model.config.text_cfg.layers=3")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Texts of different lengths, so that micro-batches differ in their number of words."""
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, (tile(i * i) for i in range(40)), per_shard=17)
    return folder


def weights(model):
    return torch.cat([x.double().flatten() for x in model.state_dict().values()])


def apart(recipe, one, other, *overrides):
    """How far the weights of two runs are apart, as a share of how far they have moved."""
    settings = config.load(TrainSettings, recipe, overrides)
    torch.manual_seed(settings.seed)
    start = weights(build(settings.model).model)
    a, b = (weights(load(str(run)).model) for run in (one, other))
    return float((a - b).norm() / (a - start).norm())


def agree(recipe, one, other, *overrides):
    """Whether two runs were one training but for rounding: their weights, and what they told."""
    assert apart(recipe, one, other, *overrides) < 2e-5
    for a, b in zip(loss_lines(one), loss_lines(other), strict=True):
        for name in ("loss", "grad_norm", "logit_scale"):
            assert a[name] == pytest.approx(b[name], rel=1e-5)
        # A difference of cosines, which may be nearly equal: it has their rounding.
        assert a["negative_margin"] == pytest.approx(b["negative_margin"], abs=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_micro_batches_train_as_the_whole_batch(tmp_path, recipe, zero_stage):
    options = (f"zero_stage={zero_stage}", CLIPPED)
    for number in (1, 2, 8):
        train_here(recipe, f"output={tmp_path}/{number}", f"micro_batches={number}", *options)
    agree(recipe, tmp_path / "1", tmp_path / "2")
    agree(recipe, tmp_path / "1", tmp_path / "8")


def test_stages_and_micro_batches_agree_on_two_ranks(tmp_path, recipe):
    """Also with blocks that are computed again, which runs ZeRO 3's hooks in another order."""
    groups = {
        (): [
            (0, 1),
            (0, 2),
            (1, 2),
            (2, 4),
            (3, 1),
            (3, 2, AGAIN),
        ],
        DEEP: [(0, 1), (3, 2), (3, 2, AGAIN)],
        ("loss.objective=negclip", "loss.comm=ring"): [(0, 1), (3, 2)],
        ("loss.objective=fscclip", "model.lock_image=true"): [(0, 1), (3, 2)],
    }
    runs = {
        options: [
            (f"zero_stage={stage}", f"micro_batches={number}", *more)
            for stage, number, *more in cases
        ]
        for options, cases in groups.items()
    }

    def folder(options, case):
        return tmp_path / " ".join((*options, *case)).replace("/", "_")

    train_all(
        recipe,
        [
            (f"output={folder(options, case)}", CLIPPED, *options, *case)
            for options, cases in runs.items()
            for case in cases
        ],
    )
    for options, (whole, *others) in runs.items():
        for case in others:
            agree(recipe, folder(options, whole), folder(options, case), *options)


def test_bf16_and_the_scale_on_two_ranks(tmp_path, recipe):
    """At every stage: bf16 stays close to stage 0, and the logit scale is brought back to 100."""
    stages = range(4)
    steep = ("model.config.init_logit_scale=6", "optimizer.lr=1e-4")
    train_all(
        recipe,
        [
            (f"output={tmp_path}/{name}{stage}", f"zero_stage={stage}", "micro_batches=2", *options)
            for name, options in (("bf16", ("precision=bf16",)), ("steep", steep))
            for stage in stages
        ],
    )
    for stage in stages:
        close_in_bf16(recipe, tmp_path / "bf160", tmp_path / f"bf16{stage}")
        scales = [line["logit_scale"] for line in loss_lines(tmp_path / f"steep{stage}")]
        assert scales[0] > 400
        assert all(90 < scale < 100.01 for scale in scales[1:])


@pytest.mark.parametrize(
    "options",
    [
        ("loss.objective=fscclip",),
        ("loss.objective=ceclip",),
        ("loss.objective=siglip", "model.config.init_logit_bias=-10"),
        ("model.lock_image=true",),
        ("data.negatives=0",),
    ],
    ids=lambda options: options[0],
)
def test_whatever_the_loss_takes(tmp_path, recipe, options):
    for number in (1, 4):
        run = f"output={tmp_path}/{number}"
        train_here(recipe, run, f"micro_batches={number}", CLIPPED, *options)
    agree(recipe, tmp_path / "1", tmp_path / "4", *options)


def test_bf16_stays_close(tmp_path, recipe):
    for number in (1, 2):
        options = ("precision=bf16", f"micro_batches={number}")
        train_here(recipe, f"output={tmp_path}/{number}", *options)
    close_in_bf16(recipe, tmp_path / "1", tmp_path / "2")


def close_in_bf16(recipe, one, other):
    for a, b in zip(loss_lines(one), loss_lines(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=5e-3)
    assert one == other or apart(recipe, one, other) < 0.1


def test_patches_are_dropped_alike_when_encoded_again(recipe, world_of_one):
    """Beside gradients by hand: all micro-batches encoded once, with a graph, and the loss."""
    settings = config.load(TrainSettings, recipe, [PATCH_DROPOUT, "micro_batches=2"])
    mixture = read_mixture(settings.data.weights)
    plan = make_plan(settings.data, mixture, settings.batch_size, settings.seed, 1)
    torch.manual_seed(settings.seed)
    loaded = build(settings.model)
    loss = settings.loss.make(settings.data.negatives)
    layout = choose_layout(loaded.model).layout
    transform, tokenizer = loaded.preprocess_train, loaded.tokenizer
    loader = Loader(settings.data, mixture, plan, transform, tokenizer, layout, 0, 1, 2)
    _, batches, _ = next(loader.batches(Position(), 1))
    batches = [batch.to(world_of_one.device) for batch in batches]

    def by_hand(first_seed):
        towers = Towers(copy.deepcopy(loaded.model), None)
        parts = []
        for number, batch in enumerate(batches):
            torch.manual_seed(first_seed + number)
            parts.append(towers(batch))
        image, text, negative, mask = (torch.cat(x) for x in list(zip(*parts, strict=True))[:4])
        loss(image, text, negative, mask, parts[0].logit_scale).total.backward()
        return torch.cat([p.grad.flatten() for p in towers.parameters()])

    engine = build_engine(loaded.model, loss, settings, world_of_one)
    expected, others = by_hand(5), by_hand(7)
    forward_backward(engine, loss, batches, lambda number: torch.manual_seed(5 + number))
    gradient = torch.cat([p.grad.flatten() for p in loaded.model.parameters()])
    assert (gradient - expected).norm() < 1e-6 * expected.norm()
    assert (gradient - others).norm() > 1e-2 * expected.norm()  # what is dropped does matter


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_run_goes_on_exactly_and_in_as_many(tmp_path, recipe, monkeypatch, zero_stage):
    """Without being told the number again."""
    options = (f"zero_stage={zero_stage}", PATCH_DROPOUT, "epochs=2", "checkpoint.every=3")
    alone, cut = f"output={tmp_path}/alone", f"output={tmp_path}/cut"
    train_here(recipe, alone, "micro_batches=2", *options)

    take = loop.train_step

    def cut_off(run, *rest):
        if run.progress.global_step == 7:
            raise KeyboardInterrupt
        return take(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train_here(recipe, cut, "micro_batches=2", *options)
    train_here(recipe, cut, "micro_batches=0", *options)
    assert loss_lines(tmp_path / "cut") == loss_lines(tmp_path / "alone")
    assert "micro_batches: 2\n" in (tmp_path / "cut/config.yaml").read_text()


def test_other_ranks_have_it_chosen_anew(tmp_path, recipe, monkeypatch):
    """What fitted a half of the batch need not fit the whole."""
    run = f"output={tmp_path}/run"
    train_all(recipe, [(run, "micro_batches=1")])
    monkeypatch.setattr(machine, "budget", lambda *_: 10**6)
    train_here(recipe, run, "micro_batches=0", "epochs=2")
    assert "micro_batches: 8\n" in (tmp_path / "run/config.yaml").read_text()
    assert len(loss_lines(tmp_path / "run")) == 10


def test_all_ranks_meet_what_the_choosing_one_meets(tmp_path, shards, recipe):
    """A shard that is named and not there: none waits for another."""
    cut = tmp_path / "cut"
    shutil.copytree(shards, cut)
    for shard in cut.glob("*.tar"):
        shard.unlink()
    one, other = errors_of(
        recipe, [f"data.shards={cut}", "micro_batches=0", f"output={tmp_path}/run"]
    )
    assert one == other
    assert "No such file or directory" in one


RESNET = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


def test_what_does_not_go_in_micro_batches(tmp_path, recipe):
    with pytest.raises(
        ValueError, match=r"micro_batches=3 must divide the 8 samples .* 1, 2, 4, 8"
    ):
        train_here(recipe, f"output={tmp_path}/run", "micro_batches=3")
    learning = build(ModelSettings(config=RESNET)).model
    check_micro_batches(1, 8, learning)
    with pytest.raises(ValueError, match=r"micro_batches=2 does not go with batch norm"):
        check_micro_batches(2, 8, learning)
    check_micro_batches(2, 8, build(ModelSettings(config=RESNET, lock_image=True)).model)
