"""FLOPs of the towers by hand, and what devices can do."""

import pytest
import torch

from hnpretrain.data.samples import Batch, Chunk
from hnpretrain.models import ModelSettings, build
from hnpretrain.models.texts import choose_layout
from hnpretrain.train import peaks
from hnpretrain.train.flops import FlopsCounter
from hnpretrain.train.peaks import device_peak, peak_of
from hnpretrain.train.towers import Towers
from tests.support.hugging_face import text_configs

WIDTH, LAYERS, EMBED, PATCH = 64, 3, 32, 16
PATCHES, LENGTH = 16, 12
MODEL = {
    "embed_dim": EMBED,
    "vision_cfg": {
        "image_size": 64,
        "layers": LAYERS,
        "width": WIDTH,
        "head_width": 32,
        "patch_size": PATCH,
    },
    "text_cfg": {
        "context_length": LENGTH,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 2,
        "layers": LAYERS,
    },
}
# A token's part in a block's weights, forward, and a pair of tokens' in its attention.
OF_TOKEN = 2 * (4 * WIDTH**2 + 2 * 4 * WIDTH**2)
OF_PAIR = 2 * 2 * WIDTH
PATCH_EMBEDDING = 2 * PATCHES * 3 * PATCH**2 * WIDTH
PROJECTION = 2 * WIDTH * EMBED


def blocks(tokens):
    return LAYERS * (tokens * OF_TOKEN + tokens**2 * OF_PAIR)


def model_of(**settings):
    return build(ModelSettings(config=MODEL, **settings))


def batch_of(loaded, layout, samples=5):
    texts = ["a red car by a bench", "a green car by a bench", "two dogs"]
    token_CL = loaded.tokenizer(texts)
    chunk = Chunk(
        keys=tuple(map(str, range(samples))),
        image_BCHW=torch.zeros(samples, 3, 64, 64),
        token_BCL=token_CL.expand(samples, *token_CL.shape),
        mask_BC=torch.ones(samples, len(texts), dtype=torch.bool),
    )
    return Batch.lay_out(chunk, choose_layout(loaded.model, layout).layout)


def flops_of(loaded, layout="padded"):
    batch = batch_of(loaded, layout)
    counter = FlopsCounter(loaded.model, parts=False)
    flops = counter.of_texts(batch.texts, batch.negative_mask_BK)
    assert flops, counter.failure
    return flops


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_the_count_is_that_by_hand(grad_checkpointing):
    """Twice the forward pass for the backward one, but for what nothing is asked of: pixels."""
    flops = flops_of(model_of(grad_checkpointing=grad_checkpointing))
    image = 3 * (blocks(PATCHES + 1) + PROJECTION) + 2 * PATCH_EMBEDDING
    assert flops.per_image == image
    text = 3 * (blocks(LENGTH) + PROJECTION)
    assert flops.per_token == pytest.approx(text / LENGTH, rel=1e-12)


def test_a_locked_tower_has_no_backward_pass():
    flops = flops_of(model_of(lock_image=True))
    assert flops.per_image == blocks(PATCHES + 1) + PROJECTION + PATCH_EMBEDDING


def test_token_trees_take_less_of_their_last_block():
    loaded = model_of()
    trees, rows = flops_of(loaded, "trees"), flops_of(loaded)
    assert trees.per_image == rows.per_image
    assert 0.7 * rows.per_token < trees.per_token < rows.per_token


def test_a_tower_that_looks_at_its_texts(tmp_path):
    """BERT, whose mask depends on their values: three tokens of 16 numbers in one block."""
    text_cfg = text_configs(tmp_path)["bert"]
    loaded = build(ModelSettings(config={**MODEL, "embed_dim": 16, "text_cfg": text_cfg}))
    texts = choose_layout(loaded.model).layout.lay_out(
        loaded.tokenizer(["a cat dog", "a dog"])[None], torch.ones(1, 2, dtype=torch.bool)
    )
    assert texts.tokens == 6
    flops = FlopsCounter(loaded.model, False).of_texts(texts, torch.ones(1, 1, dtype=torch.bool))
    block = 2 * (4 + 2) * 16**2 + 3 * 2 * 2 * 16
    projection = 2 * 2 * 16**2
    assert flops.per_token == pytest.approx(3 * (block + projection / 3), rel=1e-12)


def test_a_step_is_the_sum_of_its_micro_batches():
    loaded = model_of()
    counter = FlopsCounter(loaded.model, parts=False)
    batch, small = batch_of(loaded, "trees"), batch_of(loaded, "trees", samples=2)
    flops = counter.of_texts(batch.texts, batch.negative_mask_BK)
    tokens = batch.texts.tokens + small.texts.tokens
    assert counter.of_step([batch, small]) == flops.of(7, tokens)
    assert tokens > 0


def test_the_model_and_the_draws_are_left_alone():
    loaded = model_of()
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    state = torch.get_rng_state()
    loaded.model.eval()
    flops_of(loaded)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in loaded.model.modules())
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_a_model_that_cannot_be_counted_is_said_once(monkeypatch, capsys):
    loaded = model_of()
    batch = batch_of(loaded, "trees")

    def nosy(self, batch):
        del self
        return batch.image_BCHW.sum().item()

    monkeypatch.setattr(Towers, "forward", nosy)
    counter = FlopsCounter(loaded.model, parts=False)
    assert [counter.of_step([batch]) for _ in range(3)] == [0, 0, 0]
    assert capsys.readouterr().out.count("no MFU: FLOPs cannot be counted for this model") == 1


@pytest.mark.parametrize(
    "name, precision, tflops",
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-PCIE-40GB", "fp32", 19.5),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA H200", "fp16", 989.5),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40", "bf16", 181),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "fp16", 65),
    ],
)
def test_peaks_of_known_devices(name, precision, tflops):
    assert peak_of(name, precision) == tflops * 1e12


@pytest.mark.parametrize(
    "name, precision",
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16"),
        ("Tesla V100-SXM2-16GB", "bf16"),  # it has none
        ("AMD Instinct MI300X", "bf16"),
    ],
)
def test_no_peak_is_guessed(name, precision):
    assert peak_of(name, precision) is None


def test_the_peak_of_this_device(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert device_peak(cpu, "bf16") is None
    assert device_peak(cpu, "fp32", 0.5) == 5e11
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    assert device_peak(cuda, "fp32") == 19.5e12
    monkeypatch.setattr(peaks, "allows_tf32", lambda: True)
    assert device_peak(cuda, "fp32") == 156e12
    assert device_peak(cuda, "bf16") == 312e12
    assert device_peak(cuda, "bf16", 300) == 300e12
