"""What devices can compute at most, for the share of it that a training makes use of (MFU)."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from hnpretrain.losses.backends import allows_tf32


class Peak(NamedTuple):
    """Dense matrix products, in TFLOP/s by the format of their factors; 0 where there are none."""

    fp32: float
    tf32: float
    bf16: float
    fp16: float


# From NVIDIA's data sheets and architecture papers, with sums in fp32. Where a sheet has figures
# with sparsity alone, half of them. The first pattern that is found in the device's name counts.
_PEAKS = {
    r"\bB200\b": Peak(80, 1100, 2250, 2250),
    r"\bGH200\b": Peak(67, 494.5, 989.5, 989.5),
    r"\bH200 NVL\b": Peak(60, 417.5, 835.5, 835.5),
    r"\bH200\b": Peak(67, 494.5, 989.5, 989.5),
    r"\bH100 NVL\b": Peak(60, 417.5, 835.5, 835.5),
    r"\bH100 PCIe\b": Peak(51, 378, 756, 756),
    r"\bH100\b": Peak(67, 494.5, 989.5, 989.5),
    r"\bA100\b": Peak(19.5, 156, 312, 312),
    r"\bA40\b": Peak(37.4, 74.8, 149.7, 149.7),
    r"\bA30\b": Peak(10.3, 82, 165, 165),
    r"\bA10G\b": Peak(31.5, 35, 70, 70),
    r"\bA10\b": Peak(31.2, 62.5, 125, 125),
    r"\bRTX A6000\b": Peak(38.7, 77.4, 154.8, 154.8),
    r"\bL40S\b": Peak(91.6, 183, 362, 362),
    r"\bL40\b": Peak(90.5, 90.5, 181, 181),
    r"\bL4\b": Peak(30.3, 60, 121, 121),
    r"\bRTX 4090$": Peak(82.6, 82.6, 165.2, 165.2),
    r"\bRTX 3090$": Peak(35.6, 35.6, 71, 71),
    r"\bV100S\b": Peak(16.4, 0, 0, 130),
    r"\bV100-SXM2\b": Peak(15.7, 0, 0, 125),
    r"\bV100-PCIE\b": Peak(14, 0, 0, 112),
    r"\bT4\b": Peak(8.1, 0, 0, 65),
}


def peak_of(name: str, precision: str) -> float | None:
    """FLOP/s of a GPU at most; None if it is not known.

    Args:
        name: as CUDA tells it.
        precision: a field of Peak.
    """
    if "MIG" in name:  # a part of a GPU
        return None
    for pattern, peak in _PEAKS.items():
        if re.search(pattern, name):
            return 1e12 * getattr(peak, precision) or None
    return None


def device_peak(device: torch.device, precision: str, known_tflops: float = 0.0) -> float | None:
    """FLOP/s of this device at most; None if it is not known, as of every CPU.

    Args:
        precision: of the training: what matrix products are computed in.
        known_tflops: what the user knows of it, in TFLOP/s; 0 if nothing.
    """
    if known_tflops:
        return 1e12 * known_tflops
    if device.type != "cuda":
        return None
    if precision == "fp32" and allows_tf32():
        precision = "tf32"
    return peak_of(torch.cuda.get_device_name(device), precision)
