"""Things cut out of photos, that `replace` pastes into others.

donors.jsonl    {"id", "category", "image", "key", "light"}, one a line
donors/ID.png   RGBA: the thing with a soft edge
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hnpretrain.inpaint.editors.blend import blurred, grown, reach_of, shrunk
from hnpretrain.inpaint.editors.paste import cut_out
from hnpretrain.inpaint.editors.perceptual import srgb_to_oklab
from hnpretrain.inpaint.editors.weightless import main_piece_share, thickness, touched_borders
from hnpretrain.inpaint.folder import NAME, Folder
from hnpretrain.shards import storage
from hnpretrain.shards.images import MAX_ASPECT_RATIO, BadImage, open_image, png_of

_MAX_LINE_BYTES = 10_000
_MAX_FILE_BYTES = 64 * 2**20
# Of a donor's sides: below it is a blot when enlarged.
_LEAST_SIDE = 32
_LEAST_MAIN_PIECE = 0.95
# In units of `reach_of`: thinner things are mostly edge.
_LEAST_THICKNESS = 4
# Of the photo: what fills it is seen from too near to stand in another.
_MOST_AREA = 0.6
# Of the smallest box around it: a thing that others hide in part seldom fills its own.
_LEAST_FILLED = 0.3
_LEAST_CONTRAST = 0.07
_CHANNELS = 3


@dataclass(frozen=True)
class Donor:
    """A thing that was cut out of a photo.

    Attributes:
        id: unique in the folder.
        category: what the masks' source calls it: "dog".
        image: path in the folder: a PNG of mode RGBA, as large as the thing.
        key: of the photo that it is from.
        light: the mean color of that photo in OKLab: L, a, b.
    """

    id: str
    category: str
    image: str
    key: str
    light: tuple[float, float, float]


@dataclass(frozen=True)
class Cutting:
    """What may become a donor.

    Attributes:
        key: of the photo.
        category: what the masks' source calls it.
        photo_HWC: RGB, uint8.
        mask_HW: bool.
    """

    key: str
    category: str
    photo_HWC: np.ndarray
    mask_HW: np.ndarray


def unfit(photo_HWC: np.ndarray, mask_HW: np.ndarray) -> str:
    """Why the thing under a mask is no donor; empty if it is one."""
    if not mask_HW.any() or mask_HW.all():
        return "the mask is empty or full"
    if touches := touched_borders(mask_HW):
        return f"the photo's border cuts it ({', '.join(touches)})"
    rows, columns = mask_HW.any(1).sum(), mask_HW.any(0).sum()
    if min(rows, columns) < _LEAST_SIDE or thickness(mask_HW) < _LEAST_THICKNESS * reach_of(
        mask_HW
    ):
        return f"it is too small or thin ({columns} x {rows} pixels)"
    if max(rows, columns) > MAX_ASPECT_RATIO * min(rows, columns):
        return "it is too elongated"
    if (area := float(mask_HW.mean())) > _MOST_AREA:
        return f"it fills {area:.0%} of its photo"
    if (share := main_piece_share(mask_HW)) < _LEAST_MAIN_PIECE:
        return f"it is in pieces (the largest has {share:.0%})"
    if (filled := mask_HW.sum() / (rows * columns)) < _LEAST_FILLED:
        return f"it fills only {filled:.0%} of its box, so it is thin or partly hidden"
    if (contrast := _contrast(photo_HWC, mask_HW)) < _LEAST_CONTRAST:
        return f"it hardly stands out from its ground (by {contrast:.2f})"
    return ""


def _contrast(photo_HWC: np.ndarray, mask_HW: np.ndarray) -> float:
    """Distance in OKLab of what lies right inside the mask's edge and right outside; its mean."""
    width = 2 * reach_of(photo_HWC)
    lab_HWC = srgb_to_oklab(photo_HWC)
    inside_HW, outside_HW = mask_HW & ~shrunk(mask_HW, width), grown(mask_HW, width) & ~mask_HW
    means = []
    for where_HW in (inside_HW, outside_HW):
        weights_HW1 = blurred(where_HW, width)[..., None]
        means.append(blurred(lab_HWC * where_HW[..., None], width) / np.maximum(weights_HW1, 1e-4))
    edge_HW = mask_HW & ~shrunk(mask_HW, 1)
    return float(np.linalg.norm(means[0] - means[1], axis=-1)[edge_HW].mean())


class DonorWriter:
    """Writes a folder's donors; the new list appears last, and only then the old ones go."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._donors: list[Donor] = []

    def add(self, thing: Cutting) -> str:
        """Cuts a thing out, if it is fit; else tells why not.

        Raises:
            OSError: the folder cannot be written.
        """
        if reason := unfit(thing.photo_HWC, thing.mask_HW):
            return reason
        cut = cut_out(thing.photo_HWC, thing.mask_HW)
        alpha_HW1 = np.rint(cut.alpha_HW * 255).astype(np.uint8)[..., None]
        data = png_of(Image.fromarray(np.concatenate([cut.color_HWC, alpha_HW1], axis=-1)))
        # By place and content, so that the order in which photos are read does not matter.
        digest = hashlib.sha256(f"{thing.key} {thing.category} ".encode() + data).hexdigest()[:16]
        if any(donor.id == digest for donor in self._donors):
            return "it is there already"
        name = f"donors/{digest}.png"
        storage.write_bytes(str(self._folder.path(name)), data)
        light = srgb_to_oklab(thing.photo_HWC).reshape(-1, 3).mean(0)
        self._donors.append(
            Donor(
                digest,
                thing.category,
                name,
                thing.key,
                (round(float(light[0]), 4), round(float(light[1]), 4), round(float(light[2]), 4)),
            )
        )
        return ""

    def close(self) -> dict[str, set[str]]:
        """Writes the list; returns category to the keys of the photos that donors are from."""
        self._donors.sort(key=lambda donor: (donor.category, donor.key, donor.id))
        lines = (json.dumps(dataclasses.asdict(donor)) + "\n" for donor in self._donors)
        storage.write_bytes(str(self._folder.donors_file), "".join(lines).encode())
        named = {donor.image for donor in self._donors}
        for path in (self._folder.root / "donors").glob("*.png"):
            if f"donors/{path.name}" not in named:
                path.unlink()
        keys: dict[str, set[str]] = {}
        for donor in self._donors:
            keys.setdefault(donor.category, set()).add(donor.key)
        return keys


def read_donors(folder: Folder) -> list[Donor]:
    """All donors of a folder; none if it has no list.

    Raises:
        ValueError: the list is damaged.
    """
    if not folder.donors_file.is_file():
        return []
    donors = []
    with folder.donors_file.open("rb") as lines:
        number = 0
        while line := lines.readline(_MAX_LINE_BYTES + 1):
            number += 1
            where = f"{folder.donors_file}, line {number}"
            if len(line) > _MAX_LINE_BYTES:
                raise ValueError(f"{where}: longer than {_MAX_LINE_BYTES} bytes")
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: not JSON: {error}") from error
            donors.append(_donor(folder, value, where))
    return donors


def _donor(folder: Folder, value: object, where: str) -> Donor:
    names = [field.name for field in dataclasses.fields(Donor)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise ValueError(f"{where}: must be a JSON object with {', '.join(names)}")
    texts = [value[name] for name in ("id", "category", "image", "key")]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{where}: id, category, image and key must be texts")
    if not NAME.fullmatch(value["id"]):
        raise ValueError(f"{where}: the id {value['id']!r} is no name")
    try:
        folder.path(value["image"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    light = value["light"]
    if not isinstance(light, list) or len(light) != _CHANNELS or not all(map(_is_number, light)):
        raise ValueError(f"{where}: 'light' must be three numbers, got {light!r:.80}")
    return Donor(**{**value, "light": tuple(light)})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2


def read_cut_out(folder: Folder, donor: Donor, max_pixels: int) -> np.ndarray:
    """A donor's picture, H x W x 4, uint8: RGB and alpha.

    Raises:
        ValueError: it is missing, broken, too large, or not RGBA.
    """
    path = folder.path(donor.image)
    try:
        if (size := path.stat().st_size) > _MAX_FILE_BYTES:
            raise ValueError(f"{path}: {size} bytes, {_MAX_FILE_BYTES} are allowed")
        with open_image(path.read_bytes(), max_pixels) as image:
            if image.mode != "RGBA" or image.format != "PNG":
                raise ValueError(f"{path}: must be a PNG of mode RGBA, got {image.mode}")
            return np.array(image)
    except (BadImage, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be used as a donor: {error}") from error
