"""The loss as a module: the contrastive form, further terms, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from hnpretrain.losses.backends import BACKENDS, engine_for
from hnpretrain.losses.distributed import Ranks
from hnpretrain.losses.exchange import COMMS
from hnpretrain.losses.features import Features, TokenFeatures
from hnpretrain.losses.gaps import Machinery
from hnpretrain.losses.inputs import (
    SCOPES,
    check_agreement,
    check_inputs,
    check_more,
    one_of,
    refuse,
)
from hnpretrain.losses.sigmoid import sigmoid_contrast
from hnpretrain.losses.softmax import softmax_contrast
from hnpretrain.losses.terms import Term

FORMS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class LossOutput:
    """What the loss returns.

    Attributes:
        total: 0-dim, the loss of the global batch: the same value on every rank, differentiable.
            float32, or float64 if an input is.
        terms: the parts of `total` by name before they are weighted, 0-dim, detached, over the
            global batch: "contrastive", and those that were added to it.
        metrics: 0-dim, detached, over the valid negatives of the global batch:
            "negative_margin": mean of I_i.T_i - I_i.N_ik (cosines, if the features are normalised);
            "negative_accuracy": share with I_i.T_i > I_i.N_ik; a tie is wrong;
            "negatives": their number. All three are 0 where there is no valid negative.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]


class HardNegativeContrastiveLoss(nn.Module):
    """CLIP's symmetric contrastive loss with hard negative captions, over all ranks of a group.

    With B = W * b images I and captions T, and K negatives N_ik of caption i where mask M_ik:

        L = 1/(2B) sum_i [ -s I_i.T_i + log( sum_j exp(s I_i.T_j)
                                             + sum_{(j,k) in scope(i)} exp(s I_i.N_jk) ) ]
          + 1/(2B) sum_i [ -s I_i.T_i + log   sum_j exp(s T_i.I_j) ]

    Negatives are further captions that an image must tell from its own; no image is asked for by a
    negative. With K = 0 this is CLIP's loss (Radford et al. 2021). Scope `own` is the
    reconstruction of Roesch et al. 2024, `global` L_HN of CE-CLIP (Zhang et al. 2024).

    Gradients are those of L times W (for `logit_scale`: this rank's part of it, times W), so that
    the mean over ranks, which DistributedDataParallel and DeepSpeed take of parameter gradients,
    is the exact gradient of L. Do not multiply by W again. All ranks take part in forward, and in
    backward with the same `total.backward()`.

    Args:
        scope: whose negatives image i is scored against: "own" {(i, k)}, nothing is sent;
            "local" all of its rank; "global" all of the group; "none" leaves them to further
            terms.
        group: the ranks that share the batch; None is the world, or this process alone if
            torch.distributed is not initialised.
        comm: how captions (and negatives of scope global) travel: "gather", all at once, or
            "ring", one rank's at a time, with memory that does not grow with W.
        backend: what computes: "blocked", torch on any device; "triton", kernels for CUDA;
            "oracle", dense float64 for tests; "auto" takes the fastest that the features allow.
        form: "softmax" as above, or "sigmoid": SigLIP's, with own negatives; see sigmoid_contrast.
        label_smoothing: of the softmax form; see softmax_contrast.
        terms: further ones by name, as those in `losses.terms`, ...
        weights: ... and what they are multiplied by; 1 where a name is missing.

    Raises:
        ValueError: the scope, comm, backend or form is unknown, or they do not go together.
    """

    def __init__(
        self,
        scope: str = "own",
        group: dist.ProcessGroup | None = None,
        *,
        comm: str = "gather",
        backend: str = "auto",
        form: str = "softmax",
        label_smoothing: float = 0.0,
        terms: Mapping[str, Term] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        one_of("scope", scope, SCOPES)
        one_of("comm", comm, COMMS)
        one_of("backend", backend, ("auto", *BACKENDS))
        one_of("form", form, FORMS)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        self.scope = scope
        self.group = group
        self.comm = comm
        self.backend = backend
        self.form = form
        self.label_smoothing = label_smoothing
        self.terms = nn.ModuleDict(dict(terms or {}))
        self.weights = dict(weights or {})
        if form == "sigmoid":
            self._check_sigmoid()
        if "contrastive" in self.terms:
            raise ValueError("a term cannot be called 'contrastive': that is the loss's own part")
        for name, term in self.terms.items():
            if not isinstance(term, Term):
                raise ValueError(f"term {name!r} is a {type(term).__name__}; derive it from Term")
        if unknown := self.weights.keys() - self.terms.keys():
            raise ValueError(
                f"weights for {', '.join(sorted(unknown))}, but the terms are "
                f"{', '.join(self.terms) or 'none'}"
            )

    def _check_sigmoid(self) -> None:
        if self.scope not in ("own", "none") or self.label_smoothing:
            raise ValueError(
                "the sigmoid form scores an image against its own negatives (scope own) or none, "
                f"without label smoothing; got scope={self.scope!r} and "
                f"label_smoothing={self.label_smoothing}"
            )
        if self.backend not in ("auto", "blocked"):
            raise ValueError(f"the sigmoid form has the backend blocked, not {self.backend!r}")

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        negative: torch.Tensor | None = None,
        negative_mask: torch.Tensor | None = None,
        logit_scale: torch.Tensor | float | None = None,
        logit_bias: torch.Tensor | None = None,
        parts: TokenFeatures | None = None,
    ) -> LossOutput:
        """The loss of the global batch from this rank's part of it.

        Args:
            image: (b, D) float; b is the same on every rank. Nothing is normalised here.
            text: (b, D) float; caption i belongs to image i.
            negative: (b, K, D) float, K >= 0; None is K = 0. Scope `global` wants the same K on
                every rank.
            negative_mask: (b, K) bool, True where a negative is valid; None if all are. What
                masked slots hold, NaN included, does not matter.
            logit_scale: the multiplier s itself, exp(...) already taken: a 0-dim float tensor, or
                a positive number.
            logit_bias: 0-dim float tensor, added to all logits; None is 0. A softmax does not see
                it, and its gradient is 0 then.
            parts: features of patches and words, for terms that need them.

        Returns:
            See LossOutput. Features may be bf16, fp16, fp32 or fp64 and may differ in dtype;
            arithmetic is at least float32, under autocast too; gradients have the inputs' dtypes.

        Raises:
            ValueError: shapes, dtypes or devices do not fit together, or the ranks disagree on
                them. It is raised on all ranks, before any feature is sent.
        """
        ranks = Ranks.of(self.group)
        try:
            scale = check_inputs(image, text, negative, negative_mask, logit_scale)
            K = 0 if negative is None else negative.shape[1]
            check_more(image, K, logit_bias, parts)
            for term in self._terms():
                term.check(K, parts)
            engine = engine_for(self.backend, image, text, negative)
        except Exception:
            refuse(ranks)
            raise
        if K == 0:
            negative = negative_mask = None
        elif negative is not None and negative_mask is None:
            negative_mask = torch.ones(negative.shape[:2], dtype=torch.bool, device=image.device)
        equal_negatives = self.scope == "global" or any(
            term.equal_negatives for term in self._terms()
        )
        settings = f"{self.form} {self.label_smoothing} {list(self.terms)}"
        check_agreement(
            ranks, image, text, negative, equal_negatives, self.scope, self.comm, settings
        )
        machinery = Machinery(engine, ranks, self.comm)
        features = Features(
            image,
            text,
            negative,
            negative_mask,
            scale,
            logit_bias,
            parts,
            machinery,
            self.form,
            shared_visit=self.scope == "global"
            and any(term.captions_meet_negatives for term in self._terms()),
        )
        with torch.autocast(image.device.type, enabled=False):
            if self.form == "sigmoid":
                local = {"contrastive": sigmoid_contrast(features)}
            else:
                contrast = softmax_contrast(features, self.scope, self.label_smoothing)
                local = {"contrastive": contrast}
            for name, term in zip(self.terms, self._terms(), strict=True):
                local[name] = term(features)
            return self._output(features, local)

    def start_epoch(self) -> None:
        """Tells the terms that a new epoch begins."""
        for term in self._terms():
            term.start_epoch()

    def needs_parts(self) -> bool:
        """Whether a term looks at the features of patches and words."""
        return any(term.needs_parts for term in self._terms())

    def _terms(self) -> list[Term]:
        return cast("list[Term]", list(self.terms.values()))

    def _output(self, features: Features, parts: Mapping[str, torch.Tensor]) -> LossOutput:
        """The weighted sum with the values of the global batch: one all-reduce of a few numbers."""
        local = torch.stack(list(parts.values()))
        weights = local.new_tensor([self.weights.get(name, 1.0) for name in parts])
        behind = -features.margins.detach().double()
        # The zero margin of a masked negative counts as wrong, that is, not at all.
        counts = torch.stack([behind.sum(), (behind > 0).sum(), features.valid.sum()])
        told = features.machinery.ranks.sum(torch.cat([local.detach().double(), counts]))
        values = (told[: len(parts)] / features.machinery.ranks.size).to(local.dtype)
        margin_sum, correct, count = told[len(parts) :].to(local.dtype)
        total = _Told.apply((weights * local).sum(), (weights * values).sum())
        if features.bias is not None and self.form == "softmax":
            total = total + 0.0 * features.bias.to(total.dtype)
        at_least_one = count.clamp(min=1)
        metrics = {
            "negative_margin": margin_sum / at_least_one,
            "negative_accuracy": correct / at_least_one,
            "negatives": count,
        }
        return LossOutput(total, dict(zip(parts, values, strict=True)), metrics)

    def extra_repr(self) -> str:
        return f"scope={self.scope!r}, comm={self.comm!r}, backend={self.backend!r}"


class _Told(torch.autograd.Function):
    """(local, told) -> told, with the gradients of `local`: all ranks see one value of the loss."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        del ctx, local
        return told.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        del ctx
        return grad, None
