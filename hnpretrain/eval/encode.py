"""A model's towers as two functions: images to unit vectors, captions to unit vectors.

1. Distinct images (by content), and captions distinct to the tokenizer, are found, so that each is
   encoded once and equal ones tie to the last bit. What the store has is not encoded again.
2. Images are opened and transformed by threads, one batch ahead of the model.
3. A tower encodes batch by batch, without gradients, in eval mode. Every batch has one size, the
   last is filled up: what a feature is does not depend on what else is asked for.
4. Features are normalised in float32, checked and stored; the rows are laid out as they were asked
   for.

Memory is two batches of pixels and the features. Several processes can share the batches (`Share`);
each then has all features.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from hnpretrain.eval.images import Identity, ImageSource
from hnpretrain.eval.store import FeatureStore, InMemory

T = TypeVar("T")

PRECISIONS = ("fp32", "bf16")


class BadImages(ValueError):
    """Images that cannot be used.

    Attributes:
        reasons: what is wrong, by the image's identity; it names the image.
    """

    def __init__(self, reasons: Mapping[Identity, str]) -> None:
        self.reasons = dict(reasons)
        shown = "; ".join(list(self.reasons.values())[:3])
        more = f"; and {len(self.reasons) - 3} more" if len(self.reasons) > 3 else ""
        super().__init__(f"{shown}{more}")

    def __reduce__(self) -> tuple[Any, ...]:  # from process to process
        return BadImages, (self.reasons,)


class Share(Protocol):
    """Which batches this process encodes, and how it gets the features of the others."""

    def takes(self, batch: int) -> bool:
        """Whether this process encodes the batch of that number, from 0."""
        ...

    def joined(self, work: Callable[[], list[T]]) -> list[T]:
        """What all processes make of their batches, in the order of the batches.

        Where one process fails, all raise what it met.

        Args:
            work: gives it for each batch that this process takes.
        """
        ...

    def same(self, work: Callable[[], T]) -> T:
        """What the main process's `work` gives, in all of them."""
        ...


class All:
    """One process encodes all."""

    def takes(self, batch: int) -> bool:
        del batch
        return True

    def joined(self, work: Callable[[], list[T]]) -> list[T]:
        return work()

    def same(self, work: Callable[[], T]) -> T:
        return work()


@dataclass
class Encoder:
    """A model made ready for evaluation.

    The model is used where it is and as it is; afterwards each of its modules is back in the mode,
    train or eval, that it had.

    Attributes:
        model: has `encode_image(B x C x H x W)` and `encode_text(B x L)`, each giving B x D.
        preprocess: a PIL image to C x H x W, without randomness; called from several threads.
        tokenizer: a list of B strings to token ids, B x L; L is always the same.
        device: where the model is.
        batch_size: images or captions at a time.
        precision: fp32 takes the model's weights as they are; bf16 multiplies in bfloat16
            (autocast), which is faster on a GPU and moves scores in the third digit.
        threads: that open and transform images.
        on_progress: called with "images" or "captions" and the number of new ones just encoded.
        share: of the batches.
        store: of features; a fresh one knows nothing.
    """

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    device: torch.device | str = "cpu"
    batch_size: int = 64
    precision: str = "fp32"
    threads: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    on_progress: Callable[[str, int], None] | None = None
    share: Share = field(default_factory=All)
    store: FeatureStore = field(default_factory=InMemory)

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is not one of {', '.join(PRECISIONS)}")
        # Files are read whole to know them by content: once each.
        self._digests: dict[Identity, bytes] = {}

    def encode_images(self, images: Iterable[ImageSource]) -> Tensor:
        """Unit vectors N x D of N images, float32 on the CPU.

        Raises:
            BadImages: some cannot be read; all of them are named, and the others are in the store.
            ValueError: there is no image, or a feature is NaN or infinite.
        """
        sources = list(images)
        broken: dict[bytes, str] = {}
        self._require_the_same("images", (repr(source.identity) for source in sources))
        with ThreadPoolExecutor(self.threads) as pool:
            # The main process's word: a file that one process alone cannot read would part them.
            keys, bad = self.share.same(partial(self._image_keys, pool, sources))

            def load(source: ImageSource) -> Tensor | str:
                try:
                    image = source.open()
                except ValueError as error:
                    return str(error)
                try:
                    return self.preprocess(image)
                except ValueError as error:
                    return f"image {source.name} cannot be transformed: {error}"

            def prepare(batch: list[ImageSource]) -> list[Future[Tensor | str]]:
                return [pool.submit(load, source) for source in batch]

            known = self._known(
                "images",
                {keys[source.identity]: source for source in sources if source.identity in keys},
                prepare,
                lambda futures: [future.result() for future in futures],
                lambda model, pixels_BCHW: model.encode_image(pixels_BCHW),
                broken,
            )
        for source in sources:  # several files may hold the same
            if source.identity in keys and keys[source.identity] in broken:
                bad[source.identity] = broken[keys[source.identity]]
        if bad:
            raise BadImages(bad)
        return _lay_out(known, [keys[source.identity] for source in sources], "images")

    def encode_texts(self, texts: Iterable[str]) -> Tensor:
        """Unit vectors N x D of N captions, float32 on the CPU.

        Raises:
            ValueError: there is no caption, or a feature is NaN or infinite.
        """
        tokens = list(self._tokens(texts))
        keys = [b"caption " + tokens_L.numpy().tobytes() for tokens_L in tokens]
        self._require_the_same("captions", (key.hex() for key in keys))
        known = self._known(
            "captions",
            dict(zip(keys, tokens, strict=True)),
            lambda batch: batch,
            lambda batch: list(batch),
            lambda model, tokens_BL: model.encode_text(tokens_BL),
            {},
        )
        return _lay_out(known, keys, "captions")

    def equal_tokens(self, first: Sequence[str], second: Sequence[str]) -> list[int]:
        """The rows in which the two captions are equal to the tokenizer, which may cut them."""
        pairs = zip(self._tokens(first), self._tokens(second), strict=True)
        return [row for row, (one, other) in enumerate(pairs) if torch.equal(one, other)]

    def _require_the_same(self, what: str, asked: Iterable[str]) -> None:
        """Raises, in all processes, if they do not ask for the same: their files differ."""
        digest = hashlib.blake2b(what.encode(), digest_size=16)
        for each in asked:
            digest.update(each.encode(errors="surrogatepass") + b"\n")
        if len(set(self.share.joined(lambda: [digest.hexdigest()]))) > 1:
            raise ValueError(f"the processes have read different {what}: their files differ")

    def _image_keys(
        self, pool: ThreadPoolExecutor, sources: Sequence[ImageSource]
    ) -> tuple[dict[Identity, bytes], dict[Identity, str]]:
        """What each image is told by, and what is wrong with those that cannot be read."""
        bad: dict[Identity, str] = {}

        def digest(source: ImageSource) -> bytes | str:
            try:
                return b"image " + source.digest(source.read())
            except ValueError as error:
                return str(error)

        new = {each.identity: each for each in sources if each.identity not in self._digests}
        for batch in _batches(new.values(), 2 * self.threads):
            for source, found in zip(batch, pool.map(digest, batch), strict=True):
                if isinstance(found, str):
                    bad[source.identity] = found
                else:
                    self._digests[source.identity] = found
        wanted = {source.identity for source in sources}
        return {each: self._digests[each] for each in wanted if each in self._digests}, bad

    def _known(
        self,
        what: str,
        sources: Mapping[bytes, Any],
        prepare: Callable[[list[Any]], Any],
        loaded: Callable[[Any], list[Tensor | str]],
        encode: Callable[[Any, Tensor], Tensor],
        broken: dict[bytes, str],
    ) -> dict[bytes, Tensor]:
        """The features of all sources by key, of which the store may have some.

        Args:
            prepare: begins to make a batch of inputs of their sources.
            loaded: waits for its end; what is wrong stands in the place of an input.
            encode: inputs B x ... to features B x D.
            broken: takes what is wrong with a source.
        """
        held, held_ND = self.share.same(lambda: _stacked(self.store.get(sources)))
        known = dict(zip(held, held_ND, strict=True))
        missing = [key for key in sources if key not in known]

        def work() -> list[_Encoded]:
            with self._ready_model() as model:
                return [
                    self._encoded(what, batch, inputs, partial(encode, model))
                    for batch, inputs in self._ahead(missing, sources, prepare, loaded)
                ]

        if missing:
            of_others: dict[bytes, Tensor] = {}
            for number, batch in enumerate(self.share.joined(work)):
                found = dict(zip(batch.keys, batch.unit_BD, strict=True))
                known |= found
                broken |= batch.broken
                if not self.share.takes(number):
                    of_others |= found
            self.share.same(lambda: self.store.put(of_others))
        return known

    def _ahead(
        self,
        missing: Sequence[bytes],
        sources: Mapping[bytes, Any],
        prepare: Callable[[list[Any]], Any],
        loaded: Callable[[Any], list[Tensor | str]],
    ) -> Iterator[tuple[list[bytes], list[Tensor | str]]]:
        """The batches that this process takes; the next one is prepared while one is used."""
        pending: deque[tuple[list[bytes], Any]] = deque()
        for number, batch in enumerate(_batches(missing, self.batch_size)):
            if self.share.takes(number):
                pending.append((batch, prepare([sources[key] for key in batch])))
            if len(pending) == 2:
                keys, prepared = pending.popleft()
                yield keys, loaded(prepared)
        for keys, prepared in pending:
            yield keys, loaded(prepared)

    def _encoded(
        self,
        what: str,
        keys: Sequence[bytes],
        inputs: Sequence[Tensor | str],
        encode: Callable[[Tensor], Tensor],
    ) -> _Encoded:
        """The features of a batch, stored, and what is wrong where it stood in an input's place."""
        pairs = list(zip(keys, inputs, strict=True))
        broken = {key: each for key, each in pairs if isinstance(each, str)}
        good = [each for each in inputs if isinstance(each, Tensor)]
        if not good:
            return _Encoded([], torch.empty(0, 0), broken)
        # A product of another number of rows may sum in another order.
        filled = good + good[:1] * (self.batch_size - len(good))
        batch = torch.stack(filled).to(self.device)
        if batch.is_floating_point():
            batch = batch.to(_input_dtype(self.model))
        features_BD = encode(batch)[: len(good)]
        unit_BD = functional.normalize(features_BD.float(), dim=-1).cpu()
        if not unit_BD.isfinite().all():
            raise ValueError(
                f"the model's features of {what} hold NaN or infinity: it has diverged, or its "
                "precision overflows; a score would mean nothing"
            )
        encoded = [key for key in keys if key not in broken]
        self.store.put(dict(zip(encoded, unit_BD, strict=True)))
        if self.on_progress is not None:
            self.on_progress(what, len(good))
        return _Encoded(encoded, unit_BD, broken)

    def _tokens(self, texts: Iterable[str]) -> Iterator[Tensor]:
        for batch in _batches(texts, 1024):
            yield from self.tokenizer(batch)

    @contextmanager
    def _ready_model(self) -> Iterator[Any]:
        # Per module, since a locked tower may stay in eval mode while the rest trains.
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield self.model
        finally:
            for module, training in modes:
                module.training = training

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


@dataclass(frozen=True)
class _Encoded:
    """A batch: the keys of B inputs and their features B x D, and what was wrong with others."""

    keys: list[bytes]
    unit_BD: Tensor
    broken: dict[bytes, str]


def _stacked(features: Mapping[bytes, Tensor]) -> tuple[list[bytes], Tensor]:
    """As one tensor, which travels between processes many times faster than its rows."""
    return list(features), torch.stack(list(features.values())) if features else torch.empty(0, 0)


def _input_dtype(model: nn.Module) -> torch.dtype:
    """The precision that pixels must have: that of the image tower's matrices."""
    tower = getattr(model, "visual", model)
    for parameter in tower.parameters():
        # Vectors (norms, class tokens) may stay in float32 in a tower of lower precision.
        if parameter.dim() >= 2 and parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _lay_out(known: Mapping[bytes, Tensor], keys: Sequence[bytes], what: str) -> Tensor:
    if not keys:
        raise ValueError(f"there are no {what} to encode")
    row_of = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    rows = torch.tensor([row_of[key] for key in keys])
    return torch.stack([known[key] for key in row_of])[rows]
