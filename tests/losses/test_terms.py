"""The further terms in one process: values and gradients against their formulas, and state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hnpretrain.losses import HardNegativeContrastiveLoss
from hnpretrain.losses.features import TokenFeatures
from hnpretrain.losses.terms import CrossModalRank, IntraModalContrast, LocalChoice, OwnChoice
from tests.losses import dense_terms
from tests.losses.loss_cases import Case, assert_close, make_case, oracle

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
K = 3
THRESHOLDS = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)


def _rank() -> CrossModalRank:
    term = CrossModalRank(negatives=K)
    term.thresholds.copy_(THRESHOLDS)
    return term.eval()


TERMS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Case], torch.Tensor]]] = {
    "rank": (_rank, lambda case: dense_terms.rank(case, THRESHOLDS)),
    "intra": (IntraModalContrast, dense_terms.intra_modal),
    "choice": (OwnChoice, lambda case: dense_terms.own_choice(case, 0, 0)),
    "focal": (lambda: OwnChoice(2.0, 0.02), lambda case: dense_terms.own_choice(case, 2, 0.02)),
}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", list(TERMS))
@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0])
def test_terms_are_their_formulas(name: str, dtype: torch.dtype, scale: float) -> None:
    make, dense = TERMS[name]
    inputs = make_case(seed=20, B=11, D=8, K=K, scale=scale, noise=3.0).leaves(dtype)
    loss = HardNegativeContrastiveLoss("none", terms={name: make()}, weights={name: 0.3})
    out = loss(*inputs.arguments())
    out.total.backward()

    exact = inputs.leaves(torch.float64)
    value = dense(exact)
    total = _plain(exact) + 0.3 * value
    total.backward()
    assert_close(out.total, inputs.grads(), (total.detach(), _grads(exact)), TOLERANCE[dtype])
    assert out.terms[name].item() == pytest.approx(value.item(), rel=TOLERANCE[dtype])
    weighted = out.terms["contrastive"] + 0.3 * out.terms[name]
    torch.testing.assert_close(weighted, out.total.detach())


def _plain(case: Case) -> torch.Tensor:
    logits = case.logit_scale * case.image @ case.text.T
    gaps = logits.logsumexp(1) + logits.logsumexp(0) - 2 * logits.diagonal()
    return gaps.mean() / 2


def _grads(case: Case) -> dict[str, torch.Tensor]:
    return {name: torch.where(grad.isnan(), 0.0, grad) for name, grad in case.grads().items()}


@pytest.mark.parametrize("name", list(TERMS))
def test_terms_pass_gradcheck(name: str) -> None:
    case = make_case(seed=21, B=4, D=4, K=K, scale=3.0)
    case.negative = torch.where(case.mask[..., None], case.negative, 0.0)
    inputs = case.leaves(torch.float64)
    loss = HardNegativeContrastiveLoss("none", terms={name: TERMS[name][0]()})

    def total(*leaves: torch.Tensor) -> torch.Tensor:
        image, text, negative, scale = leaves
        return loss(image, text, negative, case.mask, scale).total

    leaves = (inputs.image, inputs.text, inputs.negative, inputs.logit_scale)
    assert torch.autograd.gradcheck(total, leaves)


@pytest.mark.parametrize("name", list(TERMS))
@pytest.mark.parametrize("without", ["negatives", "valid negatives"])
def test_terms_without_negatives_are_zero(name: str, without: str) -> None:
    case = make_case(valid=0.0) if without == "valid negatives" else make_case(K=0)
    inputs = case.leaves(torch.float64)
    out = HardNegativeContrastiveLoss(terms={name: TERMS[name][0]()})(*inputs.arguments())
    out.total.backward()
    assert out.terms[name].item() == 0.0
    assert_close(out.total, inputs.grads(), oracle(case, "own"), 1e-10)


def test_thresholds_follow_the_lead_of_the_step_before() -> None:
    term = CrossModalRank(negatives=K, highest=6.0)
    loss = HardNegativeContrastiveLoss(terms={"rank": term})
    expected = torch.zeros(K, dtype=torch.float64)
    for seed in range(3):
        case = make_case(seed=seed, K=K, scale=10.0, valid=0.4)
        if seed == 1:
            case.mask[:, 2] = False  # no negative at this place: its threshold stays
        out = loss(*case.leaves(torch.float64).arguments())
        assert out.terms["rank"].item() == pytest.approx(dense_terms.rank(case, expected).item())
        expected = dense_terms.next_thresholds(case, expected, 6.0)
        torch.testing.assert_close(term.thresholds.double(), expected)
    assert term.thresholds.max() > 0

    with torch.no_grad():
        loss(*make_case(seed=9, K=K).arguments())
    torch.testing.assert_close(term.thresholds.double(), expected)
    again = HardNegativeContrastiveLoss(terms={"rank": CrossModalRank(negatives=K)})
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.terms["rank"].thresholds, term.thresholds)
    loss.start_epoch()
    assert term.thresholds.count_nonzero() == 0


def test_thresholds_for_too_few_negatives() -> None:
    loss = HardNegativeContrastiveLoss(terms={"rank": CrossModalRank(negatives=2)})
    with pytest.raises(ValueError, match="thresholds for 2 negatives, the batch has 3"):
        loss(*make_case(K=3).arguments())


def _parts(case: Case, seed: int) -> TokenFeatures:
    generator = torch.Generator().manual_seed(seed)
    B, D = case.image.shape
    patches = torch.randn(B, 5, D, generator=generator, dtype=torch.float64)
    tokens = torch.randn(B, 1 + K, 6, D, generator=generator, dtype=torch.float64)
    mask = torch.rand(B, 1 + K, 6, generator=generator) < 0.7
    mask[..., 0] = True  # no caption without words
    return TokenFeatures(patches.requires_grad_(), tokens.requires_grad_(), mask)


@pytest.mark.parametrize(("focal", "smoothing"), [(2.0, 0.02), (0.0, 0.0)])
def test_local_choice_is_its_formula(focal: float, smoothing: float) -> None:
    case = make_case(seed=22, B=5, D=8, K=K, scale=5.0).leaves(torch.float64)
    parts = _parts(case, seed=23)
    loss = HardNegativeContrastiveLoss("none", terms={"local": LocalChoice(focal, smoothing)})
    out = loss(*case.arguments(), parts=parts)
    out.total.backward()

    again = _parts(case, seed=23)
    scores = dense_terms.local_scores(
        case.logit_scale.detach(), again.patches, again.tokens, again.token_mask
    )
    expected = dense_terms.mean_choice(scores[:, 0], scores[:, 1:], case.mask, focal, smoothing)
    expected.backward()
    torch.testing.assert_close(out.terms["local"], expected.detach())
    torch.testing.assert_close(parts.patches.grad, again.patches.grad)
    torch.testing.assert_close(parts.tokens.grad, again.tokens.grad)


def test_local_choice_wants_token_features() -> None:
    loss = HardNegativeContrastiveLoss(terms={"local": LocalChoice()})
    with pytest.raises(ValueError, match=r"parts=TokenFeatures"):
        loss(*make_case().arguments())


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("k", [0, K])
def test_sigmoid_form_is_siglips(dtype: torch.dtype, k: int) -> None:
    case = make_case(seed=24, B=13, D=8, K=k, scale=10.0, noise=3.0)
    inputs = case.leaves(dtype)
    bias = torch.tensor(-4.0, dtype=torch.float64, requires_grad=True)
    loss = HardNegativeContrastiveLoss(form="sigmoid")
    out = loss(*inputs.arguments(), logit_bias=bias)
    out.total.backward()

    exact, exact_bias = inputs.leaves(torch.float64), bias.detach().clone().requires_grad_()
    if k == 0:
        exact.negative, exact.mask = torch.zeros(13, 0, 8), torch.zeros(13, 0, dtype=torch.bool)
    expected = dense_terms.sigmoid(exact, exact_bias)
    expected.backward()
    if k == 0:
        exact.negative = None
    assert_close(out.total, inputs.grads(), (expected.detach(), _grads(exact)), TOLERANCE[dtype])
    assert bias.grad.item() == pytest.approx(exact_bias.grad.item(), rel=TOLERANCE[dtype])


def test_sigmoid_form_is_open_clips_without_negatives() -> None:
    from open_clip.loss import SigLipLoss

    case = make_case(seed=25, B=9, K=0, scale=10.0)
    bias = torch.tensor(-10.0, dtype=torch.float64)
    out = HardNegativeContrastiveLoss(form="sigmoid")(*case.arguments(), logit_bias=bias)
    theirs = SigLipLoss()(case.image, case.text, case.logit_scale, bias)
    torch.testing.assert_close(out.total, theirs)


@pytest.mark.parametrize("scope", ["own", "local", "global", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_label_smoothing_is_torchs(scope: str, dtype: torch.dtype) -> None:
    inputs = make_case(seed=26, B=8, D=8, K=K, scale=15.0, noise=2.0).leaves(dtype)
    out = HardNegativeContrastiveLoss(scope, label_smoothing=0.1)(*inputs.arguments())
    out.total.backward()
    exact = inputs.leaves(torch.float64)
    expected = dense_terms.smoothed(exact, scope, 0.1)
    expected.backward()
    if scope == "none":
        assert inputs.negative.grad is None
        inputs.negative = exact.negative = None
    assert_close(out.total, inputs.grads(), (expected.detach(), _grads(exact)), TOLERANCE[dtype])


def test_a_softmax_does_not_see_a_bias() -> None:
    case = make_case(seed=27)
    bias = torch.tensor(-3.0, requires_grad=True)
    out = HardNegativeContrastiveLoss()(*case.arguments(), logit_bias=bias)
    out.total.backward()
    assert bias.grad.item() == 0.0
    assert torch.equal(out.total, HardNegativeContrastiveLoss()(*case.arguments()).total)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "sigmoid", "scope": "global"}, "own negatives.*got scope='global'"),
        ({"form": "sigmoid", "label_smoothing": 0.1}, "label_smoothing=0.1"),
        ({"form": "sigmod"}, "did you mean 'sigmoid'"),
        ({"comm": "rings"}, "did you mean 'ring'"),
        ({"backend": "block"}, "did you mean 'blocked'"),
        ({"weights": {"rank": 0.2}}, "weights for rank, but the terms are none"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be in"),
        ({"form": "sigmoid", "backend": "oracle"}, "backend blocked, not 'oracle'"),
        ({"terms": {"mine": torch.nn.Identity()}}, "'mine' is a Identity; derive it from Term"),
        ({"terms": {"contrastive": OwnChoice()}}, "cannot be called 'contrastive'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardNegativeContrastiveLoss(**arguments)


def test_triton_says_what_it_wants() -> None:
    loss = HardNegativeContrastiveLoss(backend="triton")
    with pytest.raises(ValueError, match=r"multiple of 16; got image \(12, 16\) of torch.float64"):
        loss(*make_case().arguments())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"logit_bias": torch.zeros(1)}, r"logit_bias=tensor\(\[0.\]\) must be a 0-dim"),
        ({"logit_bias": 1.0}, "logit_bias=1.0 must be a 0-dim"),
        ({"parts": _parts(make_case(B=1), 0)}, r"patches \(1, 5, 16\).*for b=12 and K=3"),
    ],
)
def test_more_inputs_are_checked(more: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardNegativeContrastiveLoss()(*make_case().arguments(), **more)


def test_words_that_are_masked_may_hold_anything() -> None:
    case = make_case(seed=22, B=5, D=8, K=K, scale=5.0)
    grads = []
    for hidden in (0.0, torch.nan):
        parts = _parts(case, seed=23)
        parts.tokens.data[~parts.token_mask] = hidden
        loss = HardNegativeContrastiveLoss("none", terms={"local": LocalChoice()})
        loss(*case.arguments(), parts=parts).total.backward()
        grads.append(parts.tokens.grad)
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_autocast_changes_no_term(smoothing: float) -> None:
    found = []
    for cast in (False, True):
        case = make_case(seed=28, K=K, scale=30.0).leaves(torch.float32)
        parts = _parts(case, seed=29)
        terms = {name: make() for name, (make, _) in TERMS.items()} | {"local": LocalChoice()}
        loss = HardNegativeContrastiveLoss("global", terms=terms, label_smoothing=smoothing)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            loss(*case.arguments(), parts=parts).total.backward()
        found.append({**case.grads(), "tokens": parts.tokens.grad})
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name]), name
