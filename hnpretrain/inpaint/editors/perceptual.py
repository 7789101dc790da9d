"""OKLab, in which equal steps look equally large, so that shading is kept while a hue changes.

Source: Bjoern Ottosson, "A perceptual color space for image processing", 2020,
https://bottosson.github.io/posts/oklab/; sRGB's transfer function is that of IEC 61966-2-1.
In the last axis are L (0 black, 1 white), a (green to red) and b (blue to yellow). Light that is
weaker by a factor scales all three by one factor, so that chroma / L stays as it is in the shade.
"""

from __future__ import annotations

import numpy as np

_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    dtype=np.float32,
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    dtype=np.float32,
)
_LMS_TO_RGB = np.linalg.inv(_RGB_TO_LMS.astype(np.float64)).astype(np.float32)
_LAB_TO_LMS = np.linalg.inv(_LMS_TO_LAB.astype(np.float64)).astype(np.float32)
# A chroma found by so many halvings is exact to less than a step of 8 bits.
_HALVINGS = 8
# In linear light; what rounding to 8 bits hides.
_GAMUT_SLACK = 1e-3


def _linear_levels() -> np.ndarray:
    level = np.arange(256) / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


_LINEAR = _linear_levels().astype(np.float32)


def srgb_to_oklab(image: np.ndarray) -> np.ndarray:
    """... x 3, float32, of sRGB colors ... x 3, uint8."""
    return np.cbrt(_LINEAR[image] @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T


def oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """... x 3, uint8, of OKLab colors ... x 3.

    What sRGB cannot show keeps its lightness (cut to 0..1) and hue, and loses chroma until it can.
    """
    lab = np.asarray(lab, dtype=np.float32).copy()
    lab[..., 0] = lab[..., 0].clip(0, 1)
    rgb = _linear_rgb(lab)
    outside = ~_shown(rgb)
    if outside.any():
        lab_NC = lab[outside]
        least_N, most_N = np.zeros((2, len(lab_NC)), dtype=np.float32)
        most_N += 1
        for _ in range(_HALVINGS):
            share_N = (least_N + most_N) / 2
            shown_N = _shown(_linear_rgb(_scaled_chroma(lab_NC, share_N)))
            least_N, most_N = (
                np.where(shown_N, share_N, least_N),
                np.where(shown_N, most_N, share_N),
            )
        rgb[outside] = _linear_rgb(_scaled_chroma(lab_NC, least_N))
    rgb = rgb.clip(0, 1)
    levels = np.where(rgb <= 0.0031308, rgb * 12.92, 1.055 * rgb ** np.float32(1 / 2.4) - 0.055)
    return np.rint(levels * 255).astype(np.uint8)


def _linear_rgb(lab: np.ndarray) -> np.ndarray:
    return (lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T


def _shown(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(((rgb >= -_GAMUT_SLACK) & (rgb <= 1 + _GAMUT_SLACK)).all(-1))


def _scaled_chroma(lab_NC: np.ndarray, share_N: np.ndarray) -> np.ndarray:
    return lab_NC * np.stack([np.ones_like(share_N), share_N, share_N], axis=-1)
