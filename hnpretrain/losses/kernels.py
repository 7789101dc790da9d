"""The engine in Triton: logits live in registers, and what leaves a kernel is folded already.

Forward is one kernel. Its programs share the (r, c) logits like a chessboard: program (p, q) of
(P, S) takes the row blocks p, p + P, ... and meets each with the q-th span of the columns. Sums of
rows stay in registers over that span, sums of columns in the program's own place of a (P, c)
buffer. No place is written by two programs, so there are no atomics and every launch gives equal
bytes. A second kernel joins the S parts of each row and the P parts of each column.

Backward goes one of two ways. Staged, for wide features: a kernel forms the logits again and writes
the weights of one stage of rows and columns, and torch multiplies them into both gradients; a
program's own rows of gradients, (128, 512) in float32, would not fit a multiprocessor's registers.
Owned, for narrow features: they do fit, so a program keeps them while it sweeps the columns, a
second launch does the same with the roles exchanged, and no weight is ever written.

Sums and exponentials are float32. Inside the kernels logits and log-sum-exps are in units of log 2,
since exp2 is one instruction. Pointers that may be None stand for work to be left out.

At the first call for a width, a dtype, a size class and a set of pointers, Triton times a few tile
shapes and keeps the fastest. Equal inputs therefore give equal bytes within a process, while two
processes may choose differently; TRITON_CACHE_AUTOTUNING=1 keeps the first one's choices on disk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from hnpretrain.losses.blocked import blocks
from hnpretrain.losses.engines import Block, Softmax, Spread, existing

STAGE_ELEMENTS = 2**26
"""About the most weights that exist at once: 128 MiB in bf16.

Stages of 8192 x 8192 make matrix products that fill an H100, and are large enough that moving the
weights and the sums (D = 512: 160 MiB for 69 GFLOP) hides behind the arithmetic. On an H200, with
65,536 x 65,536 logits in bf16, 2**28 were 7 % faster and 2**25 19 % slower.
"""

OWNED_WIDTH = 128
"""Up to this width a program's rows of gradients fit its registers, beside a tile of logits."""

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether TRITON_INTERPRET=1 made the kernels below run in Python, on the CPU."""

PROGRAMS_PER_PROCESSOR = 8
"""Two may run at a time, so that one's exponentials overlap the other's products; and with four
rounds few processors are idle in the last one. On an H200, 2, 4 and 16 were 1 to 7 % slower."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_LOG2_E = tl.constexpr(math.log2(math.e))
_INF = tl.constexpr(math.inf)
# exp2 flushes to zero below 2**-126: 256 terms that it lost are at most 2**-28 of such a sum.
_SMALLEST_SUM = tl.constexpr(2.0**-90)


@triton.jit
def _product(
    rows: tl.tensor,
    columns: tl.tensor,
    start_m: tl.tensor,
    start_n: tl.tensor,
    r: tl.tensor,
    c: tl.tensor,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """A tile of rows (r, D) @ columns (c, D)^t, which repeats the last row and the last column."""
    k = tl.arange(0, BLOCK_K)
    # Clamped, not masked: loads without masks are simpler, and `_existing` drops what is repeated.
    m = tl.minimum(start_m + tl.arange(0, BLOCK_M), r - 1).to(tl.int64)
    n = tl.minimum(start_n + tl.arange(0, BLOCK_N), c - 1).to(tl.int64)
    rows_MK = rows + m[:, None] * D + k[None, :]
    columns_KN = columns + n[None, :] * D + k[:, None]
    product_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start_k in range(0, D, BLOCK_K):
        if D % BLOCK_K == 0:
            left_MK = tl.load(rows_MK + start_k)
            right_KN = tl.load(columns_KN + start_k)
        else:
            inside = k < D - start_k
            left_MK = tl.load(rows_MK + start_k, mask=inside[None, :], other=0.0)
            right_KN = tl.load(columns_KN + start_k, mask=inside[:, None], other=0.0)
        product_MN = tl.dot(left_MK, right_KN, product_MN, input_precision=PRECISION)
    return product_MN


@triton.jit
def _existing(
    x_MN: tl.tensor,
    hidden: tl.tensor,
    start_m: tl.tensor,
    start_n: tl.tensor,
    r: tl.tensor,
    c: tl.tensor,
    diagonal: tl.tensor,
    PAIRED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """A tile of logits, -inf where there is no row or column, or, if PAIRED, m + diagonal = n."""
    m = start_m + tl.arange(0, BLOCK_M)
    n = start_n + tl.arange(0, BLOCK_N)
    if hidden is not None:
        absent = tl.load(hidden + n, mask=n < c, other=1) != 0
        x_MN = tl.where(absent[None, :], -_INF, x_MN)
    # Few tiles are at an edge or meet the diagonal; the others are spared the comparisons.
    if (start_m + BLOCK_M > r) | (start_n + BLOCK_N > c):
        x_MN = tl.where((m < r)[:, None] & (n < c)[None, :], x_MN, -_INF)
    if PAIRED:
        first = start_m + diagonal
        if (first < start_n + BLOCK_N) & (start_n < first + BLOCK_M):
            x_MN = tl.where((m + diagonal)[:, None] == n[None, :], -_INF, x_MN)
    return x_MN


# Sums of exp2(x) are kept as (top, total), for total * exp2(top); nothing is (-inf, 0).


@triton.jit
def _joined(
    top: tl.tensor, total: tl.tensor, other_top: tl.tensor, other_total: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The sum of two sums."""
    new_top = tl.maximum(top, other_top)
    finite = tl.where(new_top == -_INF, 0.0, new_top)
    return new_top, total * tl.exp2(top - finite) + other_total * tl.exp2(other_top - finite)


@triton.jit
def _sums(x_MN: tl.tensor, AXIS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The sums of exp2(x) over AXIS; each top is the largest x."""
    top = tl.max(x_MN, AXIS)
    finite = tl.where(top == -_INF, 0.0, top)
    return top, tl.sum(tl.exp2(x_MN - tl.expand_dims(finite, AXIS)), AXIS)


@triton.jit
def _sums_both_ways(x_MN: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The sums of exp2(x) over columns, then over rows.

    A second exponential and a maximum over rows, for which warps must exchange their logits, would
    cost more than the rest together. One exponential relative to the tile's largest logit serves
    both ways, unless some row or column lies so far below that float32 begins to lose it.
    """
    top = tl.max(tl.max(x_MN, 1), 0)
    e_MN = tl.exp2(x_MN - tl.where(top == -_INF, 0.0, top))
    row_total = tl.sum(e_MN, 1)
    col_total = tl.sum(e_MN, 0)
    row_top = tl.zeros_like(row_total) + top
    col_top = tl.zeros_like(col_total) + top
    if tl.minimum(tl.min(row_total, 0), tl.min(col_total, 0)) < _SMALLEST_SUM:
        row_top, row_total = _sums(x_MN, 1)
        col_top, col_total = _sums(x_MN, 0)
    return row_top, row_total, col_top, col_total


@triton.jit
def _forward_kernel(
    rows: tl.tensor,
    columns: tl.tensor,
    hidden: tl.tensor,
    s: tl.tensor,
    row_tops: tl.tensor,
    row_totals: tl.tensor,
    col_tops: tl.tensor,
    col_totals: tl.tensor,
    r: tl.tensor,
    c: tl.tensor,
    span: tl.tensor,
    D: tl.constexpr,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    _LARGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """rows (r, D), columns (c, D), hidden (c,) -> sums of rows (S, r) and of columns (P, c)."""
    p, q = tl.program_id(0), tl.program_id(1)
    first = q * span
    end = tl.minimum(first + span, c)
    scale = tl.load(s) * _LOG2_E
    row_part = q.to(tl.int64) * r
    col_part = p.to(tl.int64) * c
    stride_m = tl.num_programs(0) * BLOCK_M
    for start_m in range(p * BLOCK_M, r, stride_m):
        m = start_m + tl.arange(0, BLOCK_M)
        row_top = tl.full((BLOCK_M,), -_INF, tl.float32)
        row_total = tl.zeros((BLOCK_M,), tl.float32)
        if col_tops is not None:
            # Other threads will read what these have stored for the row block before.
            tl.debug_barrier()
        for start_n in range(first, end, BLOCK_N):
            x_MN = scale * _product(
                rows, columns, start_m, start_n, r, c, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
            )
            x_MN = _existing(x_MN, hidden, start_m, start_n, r, end, 0, PAIRED, BLOCK_M, BLOCK_N)
            if col_tops is not None:
                n = start_n + tl.arange(0, BLOCK_N)
                # Nobody has cleared the buffer, and the first row block does not read it: so the
                # tuner may launch again and again.
                stored = (n < end) & (start_m >= stride_m)
                old_top = tl.load(col_tops + col_part + n, mask=stored, other=-_INF)
                old_total = tl.load(col_totals + col_part + n, mask=stored, other=0.0)
                tile_row_top, tile_row_total, top, total = _sums_both_ways(x_MN)
                top, total = _joined(top, total, old_top, old_total)
                tl.store(col_tops + col_part + n, top, mask=n < end)
                tl.store(col_totals + col_part + n, total, mask=n < end)
            else:
                tile_row_top, tile_row_total = _sums(x_MN, 1)
            row_top, row_total = _joined(row_top, row_total, tile_row_top, tile_row_total)
        tl.store(row_tops + row_part + m, row_top, mask=m < r)
        tl.store(row_totals + row_part + m, row_total, mask=m < r)


@triton.jit
def _join_kernel(
    tops: tl.tensor,
    totals: tl.tensor,
    lse: tl.tensor,
    parts: tl.tensor,
    length: tl.tensor,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Sums in parts, (parts, length) -> their logarithms (length,), natural."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    top = tl.full((BLOCK_N,), -_INF, tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start_p in range(0, parts, BLOCK_P):
        p = start_p + tl.arange(0, BLOCK_P)
        inside = (p < parts)[:, None] & (n < length)[None, :]
        at_PN = p[:, None].to(tl.int64) * length + n[None, :]
        top_PN = tl.load(tops + at_PN, mask=inside, other=-_INF)
        total_PN = tl.load(totals + at_PN, mask=inside, other=0.0)
        part_top = tl.max(top_PN, 0)
        finite = tl.where(part_top == -_INF, 0.0, part_top)
        part_total = tl.sum(total_PN * tl.exp2(top_PN - finite[None, :]), 0)
        top, total = _joined(top, total, part_top, part_total)
    tl.store(lse + n, (top + tl.log2(total)) / _LOG2_E, mask=n < length)


@triton.jit
def _softmax(
    lse: tl.tensor, grad: tl.tensor, at: tl.tensor, inside: tl.tensor, factor: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Log-sum-exps in units of log 2, and factor * grad.

    -inf, where there was nothing to sum, becomes inf: exp2(x - inf) is 0 for every x, never NaN.
    """
    natural = tl.load(lse + at, mask=inside, other=-_INF)
    shift = tl.where(natural == -_INF, _INF, natural * _LOG2_E)
    return shift, factor * tl.load(grad + at, mask=inside, other=0.0)


@triton.jit
def _stage_kernel(
    rows: tl.tensor,
    columns: tl.tensor,
    hidden: tl.tensor,
    s: tl.tensor,
    factor: tl.tensor,
    row_lse: tl.tensor,
    row_grad: tl.tensor,
    col_lse: tl.tensor,
    col_grad: tl.tensor,
    weights: tl.tensor,
    row_masses: tl.tensor,
    col_masses: tl.tensor,
    r: tl.tensor,
    c: tl.tensor,
    span: tl.tensor,
    diagonal: tl.tensor,
    stride: tl.tensor,
    D: tl.constexpr,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    _LARGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """-> weights (r, c), row_masses (S, r) and col_masses (P, c), all times `factor`.

    Programs share the work as in `_forward_kernel`. Masses are of the weights before they are
    rounded to the features' dtype.
    """
    p, q = tl.program_id(0), tl.program_id(1)
    first = q * span
    end = tl.minimum(first + span, c)
    scale = tl.load(s) * _LOG2_E
    power = tl.load(factor)
    stride_m = tl.num_programs(0) * BLOCK_M
    for start_m in range(p * BLOCK_M, r, stride_m):
        m = start_m + tl.arange(0, BLOCK_M)
        row_shift, row_arrived = _softmax(row_lse, row_grad, m, m < r, power)
        row_mass = tl.zeros((BLOCK_M,), tl.float32)
        if col_lse is not None:
            tl.debug_barrier()  # as in _forward_kernel
        for start_n in range(first, end, BLOCK_N):
            n = start_n + tl.arange(0, BLOCK_N)
            x_MN = scale * _product(
                rows, columns, start_m, start_n, r, c, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
            )
            x_MN = _existing(
                x_MN, hidden, start_m, start_n, r, end, diagonal, PAIRED, BLOCK_M, BLOCK_N
            )
            e_MN = tl.exp2(x_MN - row_shift[:, None])
            row_mass += row_arrived * tl.sum(e_MN, 1)
            weights_MN = row_arrived[:, None] * e_MN
            if col_lse is not None:
                col_shift, col_arrived = _softmax(col_lse, col_grad, n, n < end, power)
                stored = (n < end) & (start_m >= stride_m)
                col_mass = tl.load(col_masses + p * c + n, mask=stored, other=0.0)
                e_MN = tl.exp2(x_MN - col_shift[None, :])
                col_mass += col_arrived * tl.sum(e_MN, 0)
                tl.store(col_masses + p * c + n, col_mass, mask=n < end)
                weights_MN += col_arrived[None, :] * e_MN
            inside = (m < r)[:, None] & (n < end)[None, :]
            at_MN = m[:, None] * stride + n[None, :]  # a stage is small enough for 32 bits
            tl.store(weights + at_MN, weights_MN.to(weights.dtype.element_ty), mask=inside)
        tl.store(row_masses + q * r + m, row_mass, mask=m < r)


@triton.jit
def _own_kernel(
    own: tl.tensor,
    others: tl.tensor,
    hidden: tl.tensor,
    s: tl.tensor,
    factor: tl.tensor,
    own_lse: tl.tensor,
    own_grad: tl.tensor,
    other_lse: tl.tensor,
    other_grad: tl.tensor,
    sums: tl.tensor,
    masses: tl.tensor,
    r: tl.tensor,
    c: tl.tensor,
    D: tl.constexpr,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    _LARGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """own (r, D), others (c, D) -> sums (r, D), weights @ others, and masses (r,), times `factor`.

    The weights are both sides' softmaxes, the masses those of the own side. One program has one
    block of rows. `hidden` are others.
    """
    start_m = tl.program_id(0) * BLOCK_M
    m = start_m + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    at_MD = m[:, None].to(tl.int64) * D + d[None, :]
    inside_MD = (m < r)[:, None] & (d < D)[None, :]
    own_MD = tl.load(own + at_MD, mask=inside_MD, other=0.0)
    scale = tl.load(s) * _LOG2_E
    power = tl.load(factor)
    sums_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if own_lse is not None:
        own_shift, own_arrived = _softmax(own_lse, own_grad, m, m < r, power)
        mass = tl.zeros((BLOCK_M,), tl.float32)
    for start_n in range(0, c, BLOCK_N):
        n = start_n + tl.arange(0, BLOCK_N)
        at_ND = n[:, None].to(tl.int64) * D + d[None, :]
        inside_ND = (n < c)[:, None] & (d < D)[None, :]
        others_ND = tl.load(others + at_ND, mask=inside_ND, other=0.0)
        x_MN = scale * tl.dot(own_MD, tl.trans(others_ND), input_precision=PRECISION)
        x_MN = _existing(x_MN, hidden, start_m, start_n, r, c, 0, PAIRED, BLOCK_M, BLOCK_N)
        weights_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if own_lse is not None:
            e_MN = tl.exp2(x_MN - own_shift[:, None])
            mass += tl.sum(e_MN, 1)
            weights_MN += own_arrived[:, None] * e_MN
        if other_lse is not None:
            other_shift, other_arrived = _softmax(other_lse, other_grad, n, n < c, power)
            weights_MN += other_arrived[None, :] * tl.exp2(x_MN - other_shift[None, :])
        weights_MN = weights_MN.to(others.dtype.element_ty)
        sums_MD = tl.dot(weights_MN, others_ND, sums_MD, input_precision=PRECISION)
    tl.store(sums + at_MD, sums_MD, mask=inside_MD)
    if own_lse is not None:
        tl.store(masses + m, own_arrived * mass, mask=m < r)


def _tuned(kernel: Any, shapes: dict[int, list[tuple[dict[str, int], int, int]]]) -> dict[int, Any]:
    """The kernel by bytes of a feature, to be timed with each (sides, num_warps, num_stages).

    A launch of microseconds says little about one of milliseconds: _LARGE, which no kernel reads,
    has the two timed apart.
    """
    if INTERPRETED:
        small = {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32}
        shapes = {
            size: [({side: small[side] for side in several[0][0]}, 1, 1)]
            for size, several in shapes.items()
        }
    return {
        size: triton.autotune(
            [
                triton.Config(sides, num_warps=warps, num_stages=stages)
                for sides, warps, stages in several
            ],
            key=["D", "PRECISION", "_LARGE"],
        )(kernel)
        for size, several in shapes.items()
    }


# 2-byte features: with four warps 128 x 128 logits spill a little, but two such programs share a
# processor; 128 x 256 reads the fewest features for each logit. 4-byte ones: the first shape is for
# tensor cores (tf32), the others for plain arithmetic (ieee).
_TILES: dict[int, list[tuple[dict[str, int], int, int]]] = {
    2: [
        ({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, 4, 3),
        ({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, 8, 3),
        ({"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}, 8, 3),
        ({"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}, 8, 4),
        ({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64}, 4, 3),
        ({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64}, 4, 4),
    ],
    4: [
        ({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, 8, 3),
        ({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 16}, 8, 3),
        ({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32}, 4, 3),
        ({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, 4, 3),
    ],
}
_OWN_TILES: dict[int, list[tuple[dict[str, int], int, int]]] = {
    2: [
        ({"BLOCK_M": 128, "BLOCK_N": 128}, 8, 2),
        ({"BLOCK_M": 128, "BLOCK_N": 64}, 4, 3),
        ({"BLOCK_M": 64, "BLOCK_N": 64}, 4, 3),
    ],
    4: [
        ({"BLOCK_M": 128, "BLOCK_N": 32}, 8, 2),
        ({"BLOCK_M": 64, "BLOCK_N": 64}, 8, 2),
        ({"BLOCK_M": 64, "BLOCK_N": 32}, 4, 2),
    ],
}
_forward_kernels = _tuned(_forward_kernel, _TILES)
_stage_kernels = _tuned(_stage_kernel, _TILES)
_own_kernels = _tuned(_own_kernel, _OWN_TILES)


def _longest(block: str) -> int:
    """The longest side `block` of a tile that the tuner may choose."""
    tuners = [*_forward_kernels.values(), *_stage_kernels.values()]
    return max(config.kwargs[block] for tuner in tuners for config in tuner.configs)


_MOST_ROWS, _MOST_COLUMNS = _longest("BLOCK_M"), _longest("BLOCK_N")


def supported(features: torch.Tensor, block_features: torch.Tensor) -> bool:
    """Whether `TritonEngine` takes such rows and columns."""
    # The interpreter multiplies bfloat16 wrongly.
    dtypes = (torch.float32, torch.float16) if INTERPRETED else _DTYPES
    return (
        (INTERPRETED or features.is_cuda)
        and features.shape[1] % 16 == 0
        and features.dtype in dtypes
        and block_features.dtype in dtypes
    )


class TritonEngine:
    """See Engine; for what `supported` tells, with `s` in float32. Always deterministic.

    Args:
        precision: of the kernels' products of float32 features: "ieee", or "tf32" on tensor cores.
            The staged backward's products are torch's own and obey
            `torch.set_float32_matmul_precision`.
        programs: how many share rows and columns, about; None is what suits the device.
    """

    def __init__(self, precision: str = "ieee", programs: int | None = None) -> None:
        assert precision in ("ieee", "tf32"), precision
        self.precision = precision
        self.programs = programs

    def forward(
        self, rows: torch.Tensor, block: Block, s: torch.Tensor, both: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See Engine."""
        assert s.dtype == torch.float32, s.dtype
        rows, columns = _alike(rows, block.features)
        r, c = rows.shape[0], columns.shape[0]
        P, S, span = self._shares(r, c, rows.device)
        row_sums = s.new_empty(2, S, r)
        col_sums = s.new_empty(2, P, c) if both else None
        with torch.cuda.device_of(rows):
            _forward_kernels[rows.element_size()][P, S](
                rows,
                columns,
                _bytes(block.hidden),
                s,
                *row_sums,
                *(col_sums if col_sums is not None else (None, None)),
                r,
                c,
                span,
                **self._constants(rows, block),
            )
            return _joined_parts(row_sums), None if col_sums is None else _joined_parts(col_sums)

    def backward(
        self,
        rows: torch.Tensor,
        block: Block,
        s: torch.Tensor,
        row_softmax: Softmax,
        col_softmax: Softmax | None,
        column_sums: torch.Tensor | None,
    ) -> Spread:
        """See Engine."""
        assert s.dtype == torch.float32, s.dtype
        rows, columns = _alike(rows, existing(block.features, block.hidden, block.features.dtype))
        block = Block(columns, block.hidden, block.paired)
        factor = _factor(row_softmax, col_softmax)
        # What is owned gives masses of columns only along with the gradients of columns.
        owned = rows.shape[1] <= OWNED_WIDTH and (column_sums is not None or col_softmax is None)
        spread_over = self._owned if owned else self._staged
        with torch.cuda.device_of(rows):
            spread = spread_over(rows, block, s, factor, row_softmax, col_softmax, column_sums)
        for x in (spread.rows, column_sums, spread.row_mass, spread.col_mass):
            if x is not None:
                x.div_(factor)
        return spread

    def _staged(
        self,
        rows: torch.Tensor,
        block: Block,
        s: torch.Tensor,
        factor: torch.Tensor,
        row_softmax: Softmax,
        col_softmax: Softmax | None,
        column_sums: torch.Tensor | None,
    ) -> Spread:
        """`backward` times `factor`, by weights in memory and products of torch's."""
        (r, D), c = rows.shape, block.features.shape[0]
        spread = Spread(
            rows=s.new_zeros(r, D),
            row_mass=s.new_zeros(r),
            col_mass=None if col_softmax is None else s.new_zeros(c),
        )
        tall, wide, stride = _stage_shape(r, c)
        weights = rows.new_empty(tall, stride)
        for i in blocks(r, tall):
            for j in blocks(c, wide):
                some_rows, some_columns = rows[i], block.features[j]
                stage_r, stage_c = some_rows.shape[0], some_columns.shape[0]
                P, S, span = self._shares(stage_r, stage_c, rows.device)
                row_masses = s.new_empty(S, stage_r)
                col_masses = None if spread.col_mass is None else s.new_empty(P, stage_c)
                _stage_kernels[rows.element_size()][P, S](
                    some_rows,
                    some_columns,
                    None if block.hidden is None else _bytes(block.hidden[j]),
                    s,
                    factor,
                    *_vectors(row_softmax, i),
                    *_vectors(col_softmax, j),
                    weights,
                    row_masses,
                    col_masses,
                    stage_r,
                    stage_c,
                    span,
                    i.start - j.start,
                    stride,
                    **self._constants(rows, block),
                )
                spread.row_mass[i] += row_masses.sum(dim=0)
                if spread.col_mass is not None and col_masses is not None:
                    spread.col_mass[j] += col_masses.sum(dim=0)
                stage = weights[:stage_r, :stage_c]
                _add_product(spread.rows[i], stage, some_columns)
                if column_sums is not None:
                    _add_product(column_sums[j], stage.T, some_rows)
        return spread

    def _owned(
        self,
        rows: torch.Tensor,
        block: Block,
        s: torch.Tensor,
        factor: torch.Tensor,
        row_softmax: Softmax,
        col_softmax: Softmax | None,
        column_sums: torch.Tensor | None,
    ) -> Spread:
        """`backward` times `factor`, with gradients in registers."""
        constants = self._constants(rows, block)

        def spread_over(
            own: torch.Tensor,
            others: torch.Tensor,
            hidden: torch.Tensor | None,
            own_softmax: Softmax | None,
            other_softmax: Softmax | None,
            sums: torch.Tensor,
        ) -> torch.Tensor | None:
            r, c = own.shape[0], others.shape[0]
            masses = None if own_softmax is None else s.new_empty(r)
            _own_kernels[own.element_size()][lambda tile: (triton.cdiv(r, tile["BLOCK_M"]),)](
                own,
                others,
                _bytes(hidden),
                s,
                factor,
                *_vectors(own_softmax),
                *_vectors(other_softmax),
                sums,
                masses,
                r,
                c,
                BLOCK_D=triton.next_power_of_2(own.shape[1]),
                **constants,
            )
            return masses

        columns, hidden = block.features, block.hidden
        row_sums, col_mass = s.new_empty(rows.shape), None
        row_mass = spread_over(rows, columns, hidden, row_softmax, col_softmax, row_sums)
        assert row_mass is not None
        if column_sums is not None:
            col_mass = spread_over(columns, rows, None, col_softmax, row_softmax, column_sums)
            if hidden is not None:
                column_sums.masked_fill_(hidden[:, None], 0.0)
        return Spread(row_sums, row_mass, col_mass)

    def _constants(self, rows: torch.Tensor, block: Block) -> dict[str, Any]:
        """What kernels are compiled for."""
        r, D = rows.shape
        return {
            "D": D,
            "PAIRED": block.paired,
            "PRECISION": self.precision,
            "_LARGE": r * block.features.shape[0] >= 2**24,
        }

    def _shares(self, r: int, c: int, device: torch.device) -> tuple[int, int, int]:
        """(P, S, span): P programs share the rows, S the columns, which have `span` each.

        The sums take P * c + S * r places: fewest if P / S = r / c. No program is left without
        rows or columns.
        """
        programs = self.programs or PROGRAMS_PER_PROCESSOR * _processors(device)
        row_blocks, col_blocks = triton.cdiv(r, _MOST_ROWS), triton.cdiv(c, _MOST_COLUMNS)
        P = min(row_blocks, max(1, math.isqrt(programs * r // c)))
        S = min(col_blocks, max(1, programs // P))
        P = min(row_blocks, max(1, programs // S))
        P = triton.cdiv(row_blocks, triton.cdiv(row_blocks, P))  # shares of one size
        span = triton.cdiv(col_blocks, S) * _MOST_COLUMNS
        return P, triton.cdiv(c, span), span


def _processors(device: torch.device) -> int:
    if INTERPRETED:
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _alike(rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both contiguous and of one dtype: a kernel multiplies no others."""
    dtype = rows.dtype if rows.dtype == columns.dtype else torch.float32
    return rows.to(dtype).contiguous(), columns.to(dtype).contiguous()


def _bytes(hidden: torch.Tensor | None) -> torch.Tensor | None:
    return None if hidden is None else hidden.contiguous().view(torch.uint8)


def _vectors(
    softmax: Softmax | None, part: slice = slice(None)
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """lse and grad of a part; a gradient of a sum arrives expanded."""
    if softmax is None:
        return None, None
    return softmax.lse[part].contiguous(), softmax.grad[part].contiguous()


def _factor(row_softmax: Softmax, col_softmax: Softmax | None) -> torch.Tensor:
    """A power of two, 0-dim, that brings the largest weight near 2**15, without a look at it.

    In float16 the weights of a large batch would vanish otherwise: they end at 65504 and 6e-8. No
    weight exceeds the sum of what arrives for its row and for its column.
    """
    largest = row_softmax.grad.abs().max()
    if col_softmax is not None:
        largest = largest + col_softmax.grad.abs().max()
    exponent = torch.frexp(largest).exponent
    return torch.exp2(15.0 - exponent.clamp(min=-100))


def _joined_parts(sums: torch.Tensor) -> torch.Tensor:
    """(tops, totals) of sums in parts, (2, parts, length) -> log-sum-exps (length,)."""
    parts, length = sums.shape[1:]
    lse = sums.new_empty(length)
    block_n = 64
    _join_kernel[triton.cdiv(length, block_n),](
        *sums, lse, parts, length, BLOCK_P=16, BLOCK_N=block_n
    )
    return lse


def _stage_shape(r: int, c: int) -> tuple[int, int, int]:
    """(rows, columns) of a stage, as square as may be, and its row stride.

    The stride is a multiple of 16: the fast matrix products want rows that begin at 16 bytes.
    """
    rows = min(r, math.isqrt(STAGE_ELEMENTS))
    columns = min(c, max(16, STAGE_ELEMENTS // rows // 16 * 16))
    return rows, columns, triton.cdiv(columns, 16) * 16


def _add_product(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """sums += left @ right, where sums are float32 and the product is accumulated in float32."""
    if right.dtype == torch.float32:
        sums.addmm_(left, right)
    elif right.is_cuda:
        torch.addmm(sums, left, right, out_dtype=torch.float32, out=sums)
    else:
        sums.addmm_(left.float(), right.float())
