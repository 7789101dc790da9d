"""The text tower, forward and backward: time, memory and error, ours beside open_clip's.

1. All encoders get the same captions and negatives with the same weights, in one process, and
   take turns: whatever else the machine does slows them alike. Each turn is one forward and
   backward; medians are told. Texts are laid out before, which is timed alone.
2. Peak memory is what a turn adds to the weights: activations and gradients. It is measured on a
   GPU by its allocator. On a CPU a fresh process runs the encoder once more.
3. Errors are against open_clip's encoding of each text in a padded row of its own, in float64: of
   the features and of each parameter's gradient, relative to their norms.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from hnpretrain.bench.captions import CaptionRows, Captions
from hnpretrain.bench.encoders import Encoder, encoders
from hnpretrain.bench.machine import machine
from hnpretrain.bench.models import build_text_tower, precision
from hnpretrain.bench.processes import (
    WARM_UPS,
    added_at_peak,
    against_ours,
    in_processes,
    median_seconds,
    wait_for,
)
from hnpretrain.data.texts import Texts

_ROWS_AT_ONCE = 64  # of the float64 reference, which else would need most memory of all
# Gradients below this share of the norm of all are zero but for rounding.
_NO_GRADIENT = 1e-9


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        arch: open_clip's name, or a json file with a model config.
        B: captions.
        K: negatives a caption.
        dtype: of models.PRECISIONS.
        device: cpu or cuda.
        repeats: turns of each encoder.
        with_compiled: whether encoders are also measured under torch.compile.
    """

    arch: str
    B: int
    K: int
    dtype: str
    device: str
    repeats: int
    with_compiled: bool


def compare(cases: Sequence[Case], captions: Captions) -> Iterator[list[dict[str, Any]]]:
    """The rows of each case.

    Raises:
        ValueError: there are too few captions, before anything is measured; or an architecture
            does not do.
    """
    drawn = [captions.draw(case.B, case.K, seed=0) for case in cases]
    return map(_compare, cases, drawn)


def _compare(case: Case, captions: CaptionRows) -> list[dict[str, Any]]:
    measured: dict[str, dict[str, Any]] = in_processes(_measure, case, captions, device=case.device)
    seconds = {name: values.pop("seconds") for name, values in measured.items()}
    rows = []
    for name, values in measured.items():
        if case.device == "cpu":
            values["peak_bytes"] = in_processes(_peak_of, case, captions, name, device="cpu")
        row = {
            "case": name,
            **asdict(case),
            "seconds": seconds[name],
            **against_ours(seconds, name),
            "samples_per_second": case.B / seconds[name],
            **values,
            "machine": machine(case.device),
        }
        rows.append(row)
    return rows


class _Bench:
    """The model and the texts, in a process of its own."""

    def __init__(self, case: Case, captions: CaptionRows) -> None:
        torch.manual_seed(0)
        loaded = build_text_tower(case.arch)
        self.case = case
        # Dropout, which Hugging Face's towers have, would draw anew for each encoder.
        self.model = loaded.model.eval().to(case.device)
        self.token_BCL = torch.stack([loaded.tokenizer(row) for row in captions])
        # Signs are exact in all dtypes, so that errors are the encoders' own.
        size = (*self.token_BCL.shape[:2], loaded.config["embed_dim"])
        self.gradient_BCD = torch.randn(size).sign().to(case.device)
        found = encoders(self.model, case.K > 0, case.device, case.with_compiled)
        self.encoders = {encoder.name: encoder for encoder in found}

    def step(self, encoder: Encoder, texts: Texts) -> torch.Tensor:
        """Forward and backward; the features."""
        self.model.zero_grad()
        with precision(self.case.dtype, self.case.device):
            features_BCD = encoder.encode(texts)
        C = features_BCD.shape[1]
        features_BCD.backward(self.gradient_BCD[:, :C].to(features_BCD.dtype))
        return features_BCD.detach()


@dataclass(frozen=True)
class _Exact:
    """Features (B, C, D) and gradients by parameter, in float64."""

    features_BCD: torch.Tensor
    gradients: Mapping[str, torch.Tensor]

    def errors(self, features_BCD: torch.Tensor, model: torch.nn.Module) -> dict[str, float]:
        """Fields of a row; of gradients the largest error of any parameter's."""
        of_gradients = [
            _error(parameter.grad, self.gradients[name])
            for name, parameter in model.named_parameters()
            if name in self.gradients
        ]
        return {
            "feature_error": _error(features_BCD, self.features_BCD),
            "gradient_error": max(of_gradients),
        }


def _error(x: torch.Tensor | None, exact: torch.Tensor) -> float:
    assert x is not None
    return ((x.double() - exact).norm() / exact.norm()).item()


def _measure(case: Case, captions: CaptionRows) -> dict[str, dict[str, Any]]:
    """By encoder: fields of its row."""
    bench = _Bench(case, captions)
    exact = _exact(bench)
    found: dict[str, dict[str, Any]] = {}
    steps = {}
    for name, encoder in bench.encoders.items():
        laid_out = encoder.lay_out(bench.token_BCL)
        step = partial(bench.step, encoder, laid_out.to(torch.device(case.device)))
        for _ in range(WARM_UPS[case.device]):
            features_BCD = step()
        fields = {
            "layout": encoder.layout.kind,
            "tokens": laid_out.tokens,
            "layout_seconds": _layout_seconds(encoder, bench),
            **exact[encoder.negatives].errors(features_BCD, bench.model),
        }
        if case.device == "cuda":
            bench.model.zero_grad()  # gradients count, as they do on a CPU
            fields["peak_bytes"] = added_at_peak(step, case.device)
        found[name] = fields
        steps[name] = step
    seconds = median_seconds(steps, case.repeats, partial(wait_for, case.device))
    return {name: {**fields, "seconds": seconds[name]} for name, fields in found.items()}


def _layout_seconds(encoder: Encoder, bench: _Bench) -> float | None:
    """The median; None of padded rows, which the tokenizer gives."""
    if encoder.layout.kind == "padded":
        return None
    seconds = []
    for _ in range(bench.case.repeats):
        start = time.perf_counter()
        encoder.lay_out(bench.token_BCL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _exact(bench: _Bench) -> dict[bool, _Exact]:
    """What is exact for captions alone (False), and for captions with negatives (True)."""
    model = copy.deepcopy(bench.model).double()

    def encode(columns: slice) -> torch.Tensor:
        """(B, c, D), adding to the gradients."""
        token_NL = bench.token_BCL[:, columns].flatten(0, 1).to(bench.case.device)
        gradient_ND = bench.gradient_BCD[:, columns].flatten(0, 1).double()
        parts = []
        for start in range(0, len(token_NL), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            features_ND = model.encode_text(token_NL[rows], normalize=True)
            features_ND.backward(gradient_ND[rows])
            parts.append(features_ND.detach())
        return torch.cat(parts).unflatten(0, (bench.case.B, -1))

    def gradients() -> dict[str, torch.Tensor]:
        named = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
        least = _NO_GRADIENT * torch.nn.utils.get_total_norm(named.values())
        return {name: x.clone() for name, x in named.items() if x.norm() > least}

    captions_BCD = encode(slice(0, 1))
    of_captions = _Exact(captions_BCD, gradients())
    if not bench.case.K:
        return {False: of_captions, True: of_captions}
    features_BCD = torch.cat([captions_BCD, encode(slice(1, None))], dim=1)
    return {False: of_captions, True: _Exact(features_BCD, gradients())}


def _peak_of(case: Case, captions: CaptionRows, name: str) -> int:
    """Bytes that one forward and backward of the encoder adds to the weights at its peak."""
    bench = _Bench(case, captions)
    encoder = bench.encoders[name]
    step = partial(bench.step, encoder, encoder.lay_out(bench.token_BCL))
    step()  # threads, libraries and compiled code are there before
    bench.model.zero_grad()
    return added_at_peak(step, case.device)
