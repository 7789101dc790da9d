"""The loss in one process: value, gradients, metrics, memory and errors, against the oracle."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnpretrain.losses import HardNegativeContrastiveLoss, blocked
from hnpretrain.losses.oracle import oracle_loss
from tests.losses.loss_cases import Case, assert_close, make_case, oracle

SCOPES = ["own", "local", "global"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


def check(case: Case, scope: str, dtype: torch.dtype, tolerance: float | None = None) -> None:
    """Compares with the oracle at the inputs as rounded to `dtype`."""
    inputs = case.leaves(dtype)
    out = HardNegativeContrastiveLoss(scope)(*inputs.arguments())
    out.total.backward()
    assert out.total.ndim == 0
    assert torch.equal(out.terms["contrastive"], out.total.detach())
    for leaf in (inputs.image, inputs.text, inputs.negative):
        assert leaf is None or leaf.grad.dtype == dtype
    assert_close(out.total, inputs.grads(), oracle(inputs, scope), tolerance or TOLERANCE[dtype])


@pytest.fixture(params=[None, 60], ids=["one-tile", "many-tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with everything in one tile, then with tiles of at most 60 elements."""
    if request.param:
        monkeypatch.setattr(blocked, "CPU_TILE_ELEMENTS", request.param)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("scope", SCOPES)
class TestOracle:
    @pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
    @pytest.mark.parametrize("K", [0, 1, 3, 8])
    def test_dtypes_and_negatives(self, scope: str, dtype: torch.dtype, K: int) -> None:
        check(make_case(seed=K, B=13, D=7, K=K), scope, dtype)

    @pytest.mark.parametrize("scale", [1.0, 14.3, 50.0, 100.0])
    @pytest.mark.parametrize("noise", [2.0, 4.0])
    def test_scales(self, scope: str, scale: float, noise: float) -> None:
        check(make_case(seed=1, B=19, D=16, scale=scale, noise=noise), scope, torch.float32)

    @pytest.mark.parametrize("noise", [0.3, 0.4, 0.5])
    def test_nearly_solved(self, scope: str, noise: float) -> None:
        # Softmaxes of the positives near 1: the loss lies in digits that 1 - softmax cancels
        # (errors of 1e-2 and more). What remains is the rounding of logits near 100, 4e-6 each.
        case = make_case(seed=2, B=19, D=16, scale=100.0, noise=noise)
        assert oracle(case, scope)[0] < 0.2
        check(case, scope, torch.float32, tolerance=3e-5)

    @pytest.mark.parametrize("valid", [0.0, 0.1, 1.0])
    def test_masks(self, scope: str, valid: float) -> None:
        check(make_case(seed=3, B=9, D=11, K=4, valid=valid), scope, torch.float64)

    @pytest.mark.parametrize("B, D", [(1, 1), (1, 5), (2, 3), (17, 1), (31, 16)])
    def test_ragged_shapes(self, scope: str, B: int, D: int) -> None:
        check(make_case(seed=4, B=B, D=D, K=2, scale=3.0), scope, torch.float64)

    def test_large_norms_do_not_overflow(self, scope: str) -> None:
        case = make_case(seed=5, scale=100.0, noise=9.0)
        case.image, case.text = 10 * case.image, 10 * case.text
        check(case, scope, torch.float64)
        check(case, scope, torch.float32, tolerance=1e-4)

    def test_gradcheck(self, scope: str) -> None:
        case = make_case(seed=6, B=5, D=4, K=2, scale=3.0)
        hidden = torch.zeros_like(case.negative)
        case.negative = torch.where(case.mask[..., None], case.negative, hidden)
        inputs = case.leaves(torch.float64)

        def total(*inputs: torch.Tensor) -> torch.Tensor:
            image, text, negative, scale = inputs
            loss = HardNegativeContrastiveLoss(scope)
            return loss(image, text, negative, case.mask, scale).total

        leaves = (inputs.image, inputs.text, inputs.negative, inputs.logit_scale)
        assert torch.autograd.gradcheck(total, leaves)


@pytest.mark.parametrize("scope", SCOPES)
def test_mask_none_means_all_valid(scope: str) -> None:
    case = make_case(valid=1.0)
    case.mask = None
    check(case, scope, torch.float64)


@pytest.mark.parametrize("empty", [True, False])
def test_without_negatives_it_is_open_clips_loss(empty: bool) -> None:
    from open_clip.loss import ClipLoss

    case = make_case(K=0, B=20, scale=100.0)
    ours, theirs = case.leaves(torch.float64), case.leaves(torch.float64)
    if empty:
        ours.negative, ours.mask = torch.zeros(20, 0, 16), torch.zeros(20, 0, dtype=torch.bool)
    out = HardNegativeContrastiveLoss()(*ours.arguments())
    out.total.backward()
    expected = ClipLoss()(theirs.image, theirs.text, theirs.logit_scale)
    expected.backward()
    ours.negative = None
    assert_close(out.total, ours.grads(), (expected.detach(), theirs.grads()), 1e-12)
    assert [out.metrics[name].item() for name in sorted(out.metrics)] == [0.0, 0.0, 0.0]


def test_oracle_by_hand() -> None:
    """Two pairs on the axes of the plane, one negative each, added up with math alone."""
    image = text = torch.eye(2, dtype=torch.float64)
    negative = torch.tensor([[[0.6, 0.8]], [[1.0, 0.0]]], dtype=torch.float64)
    e, columns = math.exp, 2 * (math.log(math.exp(2) + 1) - 2)
    rows = {
        "own": [math.log(e(2) + 1 + e(1.2)) - 2, math.log(e(2) + 1 + e(0)) - 2],
        "global": [
            math.log(e(2) + 1 + e(1.2) + e(2)) - 2,
            math.log(e(2) + 1 + e(1.6) + e(0)) - 2,
        ],
    }
    for scope, value in {**rows, "local": rows["own"]}.items():
        total = oracle_loss(image, text, negative, None, 2.0, scope, ranks=2)
        assert total.item() == pytest.approx((sum(value) + columns) / 4, abs=1e-12)


def test_metrics_count_valid_negatives_and_ties_are_wrong() -> None:
    generator = torch.Generator().manual_seed(7)
    image, text = torch.nn.functional.normalize(
        torch.randn(2, 33, 513, generator=generator), dim=-1
    )
    negative = torch.stack(
        [-image, image, text, text], dim=1
    )  # easy, hopeless, a tie, a masked tie
    mask = torch.ones(33, 4, dtype=torch.bool)
    mask[:, 3] = False
    metrics = HardNegativeContrastiveLoss()(image, text, negative, mask, 10.0).metrics
    assert metrics["negatives"].item() == 99
    assert metrics["negative_accuracy"].item() == pytest.approx(1 / 3)
    positive = (image * text).sum(-1).mean().item()
    assert metrics["negative_margin"].item() == pytest.approx(2 * positive / 3, abs=1e-6)
    assert not any(value.requires_grad for value in metrics.values())


def test_all_masked_has_zero_metrics() -> None:
    case = make_case(valid=0.0)
    metrics = HardNegativeContrastiveLoss()(*case.arguments()).metrics
    assert {name: value.item() for name, value in metrics.items()} == {
        "negative_margin": 0.0,
        "negative_accuracy": 0.0,
        "negatives": 0.0,
    }


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("wanted", ["image", "text", "negative", "logit_scale"])
def test_locked_inputs_get_no_gradient(scope: str, wanted: str) -> None:
    case = make_case(seed=8)
    inputs = case.leaves(torch.float64)
    for name in ("image", "text", "negative", "logit_scale"):
        getattr(inputs, name).requires_grad_(name == wanted)
    HardNegativeContrastiveLoss(scope)(*inputs.arguments()).total.backward()
    expected = oracle(case, scope)[1][wanted]
    torch.testing.assert_close(getattr(inputs, wanted).grad, expected, rtol=1e-10, atol=1e-12)
    others = {"image", "text", "negative", "logit_scale"} - {wanted}
    assert all(getattr(inputs, name).grad is None for name in others)


def test_mixed_dtypes_and_number_for_scale() -> None:
    case = make_case(seed=9, K=0)
    image = case.image.to(torch.bfloat16).requires_grad_()
    text = case.text.float().requires_grad_()
    out = HardNegativeContrastiveLoss()(image, text, logit_scale=20)
    out.total.backward()
    expected = oracle(Case(image, text, None, None, case.logit_scale), "own")
    assert (out.total.dtype, image.grad.dtype, text.grad.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )
    assert out.total.item() == pytest.approx(expected[0].item(), rel=1e-5)
    torch.testing.assert_close(text.grad.double(), expected[1]["text"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scope", SCOPES)
def test_autocast_changes_nothing(scope: str) -> None:
    plain, cast = (make_case(seed=10, scale=100.0).leaves(torch.float32) for _ in range(2))
    loss = HardNegativeContrastiveLoss(scope)
    loss(*plain.arguments()).total.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(*cast.arguments()).total.backward()
    for name, grad in plain.grads().items():
        assert torch.equal(grad, cast.grads()[name])


def test_no_grad_and_scaled_total() -> None:
    loss, inputs = HardNegativeContrastiveLoss(), make_case(seed=11).leaves(torch.float64)
    with torch.no_grad():
        assert not loss(*inputs.arguments()).total.requires_grad
    (loss(*inputs.arguments()).total * 1024 / 4).backward()
    for name, expected in oracle(inputs, "own")[1].items():
        torch.testing.assert_close(inputs.grads()[name], 256 * expected)


def test_second_derivatives_are_refused() -> None:
    inputs = make_case().leaves(torch.float64)
    total = HardNegativeContrastiveLoss()(*inputs.arguments()).total
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(total, inputs.image, create_graph=True)


class _Largest(TorchDispatchMode):
    """Remembers the most elements that any operation gave back in storage of its own."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.itemsize)
        return result


@pytest.mark.parametrize("scope", SCOPES)
def test_no_buffer_of_all_pairs(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tile, B, D, K = 4096, 512, 8, 2
    monkeypatch.setattr(blocked, "CPU_TILE_ELEMENTS", tile)
    inputs = make_case(B=B, D=D, K=K).leaves(torch.float32)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x)
    with _Largest() as largest, hooks:
        HardNegativeContrastiveLoss(scope)(*inputs.arguments()).total.backward()
    features = B * K * D
    assert largest.elements == max(tile, features) < B * B
    kept = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in saved}
    assert sum(kept.values()) <= 4 * B * (2 * D + K * D + 5 * K + 12) + 8

    with _Largest() as dense:  # the measure sees the buffer where there is one
        oracle_loss(*inputs.arguments(), scope=scope).backward()
    assert dense.elements >= B * B


def bad(**changes: object) -> dict[str, object]:
    """Good arguments for b=4, D=3, K=2, with some changed."""
    good = {
        "image": torch.ones(4, 3),
        "text": torch.ones(4, 3),
        "negative": torch.ones(4, 2, 3),
        "negative_mask": torch.ones(4, 2, dtype=torch.bool),
        "logit_scale": 10.0,
    }
    return {**good, **changes}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (bad(text=torch.ones(5, 3)), r"image \(4, 3\) and text \(5, 3\)"),
        (bad(image=torch.ones(0, 3), text=torch.ones(0, 3)), "at least one row"),
        (bad(image=torch.ones(12), text=torch.ones(12)), r"\(b, D\)"),
        (bad(negative=torch.ones(4, 3)), r"negative \(4, 3\) must have shape \(b, K, D\)"),
        (bad(negative=torch.ones(4, 2, 5)), r"negative \(4, 2, 5\).*b=4 and D=3"),
        (bad(negative_mask=torch.ones(4, 2)), "torch.float32 must be.*torch.bool"),
        (bad(negative_mask=torch.ones(4, 3, dtype=torch.bool)), r"\(4, 3\).*\(4, 2, 3\)"),
        (bad(negative=None), "without negatives"),
        (bad(image=torch.ones(4, 3, dtype=torch.int64)), r"image \(4, 3\) is torch.int64"),
        (bad(text=torch.ones(4, 3, device="meta")), r"text \(4, 3\) is on meta"),
        (bad(logit_scale=torch.ones(1)), r"logit_scale \(1,\).*0-dim"),
        (bad(logit_scale=torch.tensor(3)), "torch.int64"),
        (bad(logit_scale=None), "logit_scale is missing"),
        (bad(logit_scale=0.0), "finite positive"),
        (bad(logit_scale=float("inf")), "finite positive"),
    ],
)
def test_wrong_inputs_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardNegativeContrastiveLoss()(**arguments)


def test_unknown_scope_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'globl'.*own, local, global.*did you mean 'global'"):
        HardNegativeContrastiveLoss(scope="globl")


def test_group_without_initialised_world() -> None:
    loss = HardNegativeContrastiveLoss(group=object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not initialised"):
        loss(torch.ones(1, 1), torch.ones(1, 1), logit_scale=1.0)


def test_import_loads_torch_and_nothing_heavy() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import hnpretrain.losses; "
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = result.stdout.split()
    assert "hnpretrain.losses" in loaded
    ours = {name for name in loaded if name.startswith("hnpretrain")}
    assert all(name == "hnpretrain" or name.startswith("hnpretrain.losses") for name in ours)
    assert {name.split(".")[0] for name in loaded} <= {
        "hnpretrain",
        "torch",
        *sys.stdlib_module_names,
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_cuda(scope: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "GPU_TILE_ELEMENTS", 50_000)
    inputs = make_case(B=700, D=64, K=3, scale=100.0, noise=4.0).leaves(dtype, device="cuda")
    out = HardNegativeContrastiveLoss(scope)(*inputs.arguments())
    out.total.backward()
    assert_close(out.total, inputs.grads(), oracle(inputs, scope), TOLERANCE[dtype])


def test_example_of_the_docs_learns(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "loss.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    torch.manual_seed(0)
    exec(example, {"__name__": "example"})
    losses = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5
