"""The Triton engine against the float64 oracle: in the interpreter on a CPU, and on a GPU.

Triton asks once, when it is imported, whether to interpret kernels, and by then another test may
have imported it. So `python -m tests.losses.test_kernels FILE` runs every case in a process of its
own, and the tests here compare what it found.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.functional import normalize

from hnpretrain.losses import kernels, make_loss
from hnpretrain.losses.engines import Block, Engine, Softmax
from hnpretrain.losses.kernels import TritonEngine
from hnpretrain.losses.oracle import Oracle
from tests.losses.loss_cases import error, make_case

Results = dict[str, torch.Tensor]

# Rounding the weights to float16 or bfloat16, and the logits to TF32, is most of it.
TOLERANCE = {"float32": 1e-5, "tf32": 2e-2, "float16": 1e-3, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Problem:
    """A pair of blocks, and how the engine is to go about it.

    Attributes:
        r, c, D: sizes.
        s: the multiplier.
        dtype: of the features.
        norm: features have norms from 1, the first, down to this, the last.
        paired, both: as in Engine.
        need_columns: whether backward is asked for sums for the columns.
        hidden: the share of hidden columns, whose features are NaN; None passes no mask.
        arriving: the size of the gradients that arrive. Every third one is zero.
        programs: as in TritonEngine.
        stage: what kernels.STAGE_ELEMENTS is.
        owned_width: what kernels.OWNED_WIDTH is.
    """

    r: int
    c: int
    D: int
    s: float = 20.0
    dtype: torch.dtype = torch.float32
    norm: float = 1.0
    paired: bool = False
    both: bool = True
    need_columns: bool = True
    hidden: float | None = None
    arriving: float = 1.0
    programs: int | None = 4
    stage: int = 2**26
    owned_width: int = 128

    def engine(self, precision: str = "ieee") -> TritonEngine:
        return TritonEngine(precision, self.programs)

    def inputs(self, device: str) -> tuple[torch.Tensor, Block, torch.Tensor]:
        """rows, block and s."""
        generator = torch.Generator().manual_seed(self.r + self.c + self.D)

        def features(length: int) -> torch.Tensor:
            drawn = normalize(torch.randn(length, self.D, generator=generator), dim=-1)
            norms = torch.logspace(0, math.log10(self.norm), length)
            return (drawn * norms[:, None]).to(device, self.dtype)

        rows, columns, hidden = features(self.r), features(self.c), None
        duplicates = min(5, self.r, self.c - 1)
        columns[1 : 1 + duplicates] = rows[:duplicates]  # logits of s, which are no pairs
        if self.hidden is not None:
            hidden = (torch.rand(self.c, generator=generator) < self.hidden).to(device)
            columns[hidden] = torch.nan
        return rows, Block(columns, hidden, self.paired), torch.tensor(self.s, device=device)

    def results(self, engine: Engine, device: str = "cpu") -> Results:
        """All that an engine gives.

        Backward goes from the oracle's log-sum-exps, so that errors are its own, and from a little
        more than those: other blocks have a share of the softmaxes.
        """
        rows, block, s = self.inputs(device)
        row_lse, col_lse = engine.forward(rows, block, s, self.both)
        generator = torch.Generator().manual_seed(self.c)

        def softmax(lse: torch.Tensor) -> Softmax:
            grad = torch.randn(lse.shape, generator=generator).mul_(self.arriving)
            grad[::3] = 0.0
            return Softmax(lse + 0.3, grad.to(device))

        over_columns, over_rows = Oracle().forward(rows, block, s, self.both)
        row_softmax = softmax(over_columns)
        col_softmax = None if over_rows is None else softmax(over_rows)
        with (
            mock.patch.object(kernels, "STAGE_ELEMENTS", self.stage),
            mock.patch.object(kernels, "OWNED_WIDTH", self.owned_width),
        ):
            column_sums = s.new_zeros(block.features.shape) if self.need_columns else None
            spread = engine.backward(rows, block, s, row_softmax, col_softmax, column_sums)
        results = {"row_lse": row_lse, "col_lse": col_lse, "columns": column_sums, **vars(spread)}
        return {name: x for name, x in results.items() if x is not None}


PROBLEMS = {
    # both ways of backward, and more columns than rows or fewer
    "narrow": Problem(100, 130, 16, paired=True),
    "not-a-power-of-two": Problem(130, 100, 48, paired=True),
    "not-of-whole-blocks": Problem(100, 130, 48, paired=True, owned_width=0),
    "wide": Problem(130, 130, 512, paired=True),
    # ragged, down to nothing left to sum
    "one-pair": Problem(1, 1, 16, paired=True),
    "one-pair-staged": Problem(1, 1, 512, paired=True),
    "one-row": Problem(1, 17, 48),
    "one-column": Problem(17, 1, 48, owned_width=0),
    "one-block": Problem(17, 16, 32),
    # scales, and logits too far apart for one exponential
    "s-1": Problem(17, 130, 48, s=1.0),
    "s-100": Problem(100, 100, 512, s=100.0, paired=True),
    "far-apart": Problem(70, 70, 16, s=120.0, norm=1e-3, paired=True),
    "far-apart-staged": Problem(70, 70, 16, s=120.0, norm=1e-3, owned_width=0),
    # columns that are not there
    "hidden": Problem(100, 130, 512, hidden=0.4, both=False),
    "hidden-narrow": Problem(100, 130, 16, hidden=0.4, both=False),
    "hidden-both": Problem(70, 100, 16, hidden=0.4, paired=True),
    "hidden-both-staged": Problem(70, 100, 16, hidden=0.4, paired=True, owned_width=0),
    "all-hidden": Problem(40, 40, 16, hidden=1.0),
    "all-hidden-staged": Problem(40, 40, 16, hidden=1.0, owned_width=0),
    "all-hidden-one-way": Problem(40, 40, 48, hidden=1.0, both=False),
    # what is not asked for
    "one-way": Problem(100, 130, 512, both=False),
    "one-way-narrow": Problem(100, 130, 32, both=False, need_columns=False),
    "locked": Problem(100, 130, 48, need_columns=False),
    "locked-one-way": Problem(100, 70, 512, both=False, need_columns=False),
    # one program, many, and stages that cut through row blocks and pairs
    "one-program": Problem(130, 100, 48, paired=True, programs=1),
    "many-programs": Problem(130, 100, 48, paired=True, programs=1000, owned_width=0),
    "tall": Problem(300, 17, 16, programs=3, owned_width=0),
    "stages": Problem(130, 100, 48, paired=True, hidden=0.2, stage=1500, owned_width=0),
    "stages-wide": Problem(70, 130, 512, paired=True, stage=2500, programs=2),
    # gradients near the smallest numbers
    "tiny": Problem(70, 70, 16, arriving=1e-30),
    "zero": Problem(40, 40, 16, arriving=0.0, owned_width=0),
    "float16": Problem(100, 130, 48, dtype=torch.float16, paired=True),
    "float16-tiny": Problem(100, 130, 48, dtype=torch.float16, arriving=1e-9, owned_width=0),
}


def assert_close(found: Results, expected: Results, tolerance: float) -> None:
    """Infinities are equal, and the rest within `tolerance` of the norm. Also the dtypes."""
    assert found.keys() == expected.keys()
    errors = {}
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        infinite = value.isinf()
        assert torch.equal(found[name].isinf(), infinite), name
        finite = value.double().masked_fill(infinite, 0.0).cpu()
        errors[name] = error(found[name].masked_fill(infinite, 0.0), finite)
    assert all(value <= tolerance for value in errors.values()), errors


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `main` finds in Triton's interpreter."""
    path = tmp_path_factory.mktemp("kernels") / "found.pt"
    run = subprocess.run(
        [sys.executable, "-m", "tests.losses.test_kernels", str(path)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", PROBLEMS)
def test_results_are_the_oracles(interpreted: dict[str, Any], name: str) -> None:
    problem = PROBLEMS[name]
    tolerance = TOLERANCE[str(problem.dtype).removeprefix("torch.")]
    assert_close(interpreted["results"][name], problem.results(Oracle()), tolerance)


def test_a_second_run_gives_equal_bytes(interpreted: dict[str, Any]) -> None:
    for name, again in interpreted["again"].items():
        first = interpreted["results"][name]
        assert first.keys() == again.keys()
        assert all(torch.equal(first[key], again[key]) for key in first), name


def test_mixed_dtypes_meet_in_float32(interpreted: dict[str, Any]) -> None:
    rows, block, s = PROBLEMS["narrow"].inputs("cpu")
    expected = Oracle().forward(rows.half(), block, s, both=False)[0]
    assert error(interpreted["mixed"], expected.double()) < 1e-6


def test_expanded_gradients(interpreted: dict[str, Any]) -> None:
    expanded, plain = interpreted["ones"]
    assert torch.equal(expanded, plain)


def test_supported(interpreted: dict[str, Any]) -> None:
    assert interpreted["supported"] == {
        "float32": True,
        "float16": True,
        "bfloat16": False,  # the interpreter's fault
        "float64": False,
        "mixed": True,
        "other width": False,
    }
    features = torch.zeros(4, 16)
    assert kernels.supported(features, features) == kernels.INTERPRETED  # not on a plain CPU


@pytest.mark.parametrize("scope", ["own", "local", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_whole_loss_in_triton(
    interpreted: dict[str, Any], scope: str, dtype: torch.dtype
) -> None:
    ours, exact = interpreted["losses"][f"{scope}-{dtype}"]
    tolerance = TOLERANCE[str(dtype).removeprefix("torch.")]
    for name, expected in exact.items():
        assert error(ours[name], expected.double()) < 2 * tolerance, name


def test_programs_share_all_rows_and_columns() -> None:
    most_rows, most_columns = kernels._MOST_ROWS, kernels._MOST_COLUMNS
    for r, c in [(1, 1), (1, 10**7), (10**7, 1), (300, 70_000), (4096, 4096), (65_536, 65_536)]:
        for programs in (1, 7, 1056):
            P, S, span = TritonEngine(programs=programs)._shares(r, c, torch.device("cpu"))
            assert programs >= P * S
            assert (P - 1) * most_rows < r  # each has rows, whatever block the tuner chooses
            assert (S - 1) * span < c <= S * span
            assert span % most_columns == 0


def test_stages_are_bounded_and_aligned() -> None:
    for r, c in [(1, 10**8), (10**8, 1), (5000, 10**6), (10**6, 10**6), (100, 130)]:
        rows, columns, stride = kernels._stage_shape(r, c)
        assert rows <= r
        assert columns <= c
        assert stride % 16 == 0
        assert stride - 16 < columns <= stride
        assert rows * columns <= kernels.STAGE_ELEMENTS


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GPU_PROBLEMS = {
    "wide": {"r": 4096, "c": 5000, "D": 512, "paired": True},
    "not-of-whole-blocks": {"r": 1000, "c": 777, "D": 720, "paired": True},
    "narrow": {"r": 3000, "c": 3000, "D": 128, "paired": True},
    "not-a-power-of-two": {"r": 1111, "c": 2000, "D": 48},
    "one-row": {"r": 1, "c": 100, "D": 512},
    "far-apart": {"r": 1000, "c": 1000, "D": 16, "s": 120.0, "norm": 1e-8},
    "hidden": {"r": 2000, "c": 9000, "D": 512, "hidden": 0.3, "both": False},
    "hidden-narrow": {"r": 2000, "c": 9000, "D": 64, "hidden": 0.3, "both": False},
    "all-hidden": {"r": 500, "c": 500, "D": 256, "hidden": 1.0},
    "locked": {"r": 2000, "c": 2000, "D": 512, "need_columns": False},
    "stages": {"r": 3000, "c": 3000, "D": 512, "paired": True, "stage": 10**6},
    "one-program": {"r": 700, "c": 700, "D": 512, "paired": True, "programs": 1},
    "large": {"r": 12_000, "c": 12_000, "D": 1024, "paired": True},
}


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", GPU_PROBLEMS)
def test_cuda(name: str, precision: str) -> None:
    dtype = getattr(torch, "float32" if precision == "tf32" else precision)
    sizes: dict[str, Any] = {"programs": None, **GPU_PROBLEMS[name]}
    problem = Problem(dtype=dtype, arriving=1e-6, **sizes)
    engine = problem.engine("tf32" if precision == "tf32" else "ieee")
    found = problem.results(engine, "cuda")
    tolerance = TOLERANCE[precision] * max(1.0, problem.s / 20)  # what rounds logits grows with s
    assert_close(found, problem.results(Oracle(), "cuda"), tolerance)
    again = problem.results(engine, "cuda")
    assert all(torch.equal(found[key], again[key]) for key in found)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("D", [128, 512])
def test_cuda_memory(D: int) -> None:
    B = 2**15
    features = normalize(torch.randn(2, B, D, device="cuda"), dim=-1).bfloat16()
    rows, block = features[0], Block(features[1], paired=True)
    s, grad = torch.tensor(50.0, device="cuda"), torch.rand(B, device="cuda")

    def step() -> None:
        row_lse, col_lse = TritonEngine().forward(rows, block, s, both=True)
        assert col_lse is not None
        softmaxes = Softmax(row_lse, grad), Softmax(col_lse, grad)
        TritonEngine().backward(rows, block, s, *softmaxes, s.new_zeros(B, D))

    step()  # the tuner has buffers of its own
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    assert torch.cuda.max_memory_allocated() - before < B * B // 2  # a quarter of one in bf16


def whole_loss(scope: str, dtype: torch.dtype, backend: str) -> Results:
    """The loss and its gradients with every autograd function on the engine."""
    inputs = make_case(seed=30, B=40, D=32, K=2, scale=30.0, noise=2.0).leaves(dtype)
    loss = make_loss("hn", 2, scope=scope, weights={"intra_modal": 0.3}, backend=backend)
    total = loss(*inputs.arguments()).total
    total.backward()
    return {"total": total.detach(), **inputs.grads()}


def main(path: str) -> None:
    """Runs every problem on the CPU, some of them twice, and saves what was found."""
    torch.set_num_threads(1)
    assert kernels.INTERPRETED
    rows, block, s = PROBLEMS["narrow"].inputs("cpu")
    features = torch.zeros(4, 16)
    dtypes = {
        str(dtype).removeprefix("torch."): (features.to(dtype), features.to(dtype))
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    }
    others = {
        "mixed": (features.half(), features),
        "other width": (torch.zeros(4, 24), torch.zeros(4, 24)),
    }
    pairs = dtypes | others
    # The gradient of a sum is one number, seen everywhere.
    ones = [
        TritonEngine().backward(rows, block, s, Softmax(torch.zeros(len(rows)), x), None, None)
        for x in (torch.ones(()).expand(len(rows)), torch.ones(len(rows)))
    ]
    found = {
        "results": {name: problem.results(problem.engine()) for name, problem in PROBLEMS.items()},
        "again": {
            name: PROBLEMS[name].results(PROBLEMS[name].engine())
            for name in ("narrow", "hidden-both-staged", "stages")
        },
        "mixed": TritonEngine().forward(rows.half(), block, s, both=False)[0],
        "ones": [spread.rows for spread in ones],
        "losses": {
            f"{scope}-{dtype}": [whole_loss(scope, dtype, by) for by in ("triton", "oracle")]
            for scope in ("own", "local", "global")
            for dtype in (torch.float32, torch.float16)
        },
        "supported": {name: kernels.supported(*pair) for name, pair in pairs.items()},
    }
    torch.save(found, path)


if __name__ == "__main__":
    main(sys.argv[1])
