"""How one picture becomes its copy, apart from reading and writing files.

The command, the library and a worker on another machine have this in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np

from tue_cli.config import METHODS
from tue_cli.dataset.manifest import sha256
from tue_cli.dataset.secret import Secret
from tue_cli.engine.canvas import Canvas, make_canvas, perturb_canvases
from tue_cli.engine.torch import Engine, Floats
from tue_cli.errors import DeviceUnavailable
from tue_cli.images import codec, encode, mark, resize
from tue_cli.images.deep import Pixels
from tue_cli.images.quality import Quality, compare
from tue_cli.images.residual import collect_facts, measure_small_rms
from tue_cli.images.strip import strip
from tue_cli.images.visibility import describe_share, find_worst_tile, measure_share
from tue_cli.protect.context import ALGORITHM, open_engine
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import CopyRecord
from tue_cli.weights import Weights

MANY = 1_000_000
"""How many pictures are taken to come where nobody knows: the engine for many serves them."""


@dataclass(frozen=True)
class Prepared:
    """A decoded picture on its way to the engine and back."""

    picture: codec.DecodedImage
    canvas: Canvas
    source_sha256: str


@dataclass(frozen=True)
class Copy:
    """A protected picture as a file, and how far it is from its original."""

    encoded: encode.Encoded
    quality: Quality
    added: bool
    """Whether noise changed any pixel."""


@dataclass(frozen=True)
class Copier:
    """Makes copies of pictures: what a run does apart from reading and writing files."""

    spec: ProtectSpec
    """Its settings, format, quality, strip and mark; the rest decides nothing here."""
    weights: Weights
    engine: Engine
    secret: Secret

    def prepare(
        self,
        picture: codec.DecodedImage,
        source_sha256: str,
        place: PurePath,
        notes: Iterable[str] = (),
    ) -> Prepared:
        """Return a picture that is ready for the engine.

        Args:
            picture: decoded.
            source_sha256: of the file, on which its noise depends.
            place: where the copy goes.
            notes: what else a person should know; without effect where metadata is removed.

        Raises:
            ImageProblem: its copy's format cannot hold it.
        """
        picture = strip(encode.fit_format(picture, self.spec.format, place), self.spec.strip)
        if self.spec.strip != "metadata":
            picture = replace(picture, notes=(*picture.notes, *notes))
        canvas = make_canvas(picture.shown, self.weights.card.size, self.spec.settings)
        return Prepared(picture, canvas, source_sha256)

    def perturb(self, batch: Sequence[Prepared], codes: Sequence[str]) -> Floats:
        """Return the noise of each picture for its code, (N, 3, S, S).

        Raises:
            DeviceUnavailable: the device fails, or computes no numbers.
        """
        seed = str(self.spec.settings.seed)
        numbers = [self.weights.card.classes.index(code) for code in codes]
        deltas = perturb_canvases(
            self.engine,
            [ready.canvas for ready in batch],
            numbers,
            [self.secret.derive_number("noise", seed, ready.source_sha256) for ready in batch],
        )
        if not np.isfinite(deltas).all():
            raise DeviceUnavailable(
                f"{self.engine.description}: the noise is not a number (NaN).",
                "Use --device cpu, another --backend or other weights.",
            )
        return deltas

    def add(self, ready: Prepared, delta: Floats) -> Pixels:
        """Return the picture's pixels with its noise."""
        settings = self.spec.settings
        reach = METHODS[settings.method].find_reach(settings.noise)
        return resize.add_upsampled(delta, ready.picture.pixels, reach, ready.canvas.mask)

    def finish(self, ready: Prepared, delta: Floats) -> Copy:
        """Return the copy of a picture with its noise.

        Raises:
            ImageProblem: its format cannot hold it.
        """
        spec, picture = self.spec, ready.picture
        protected = [self.add(ready, delta)]
        added = not np.array_equal(protected[0], picture.pixels)
        marks = spec.mark and added  # a picture without any noise is not protected
        encoded = encode.encode(
            mark.prepare(picture) if marks else picture,
            protected.pop(),  # nothing here holds them, so that `encode` can let them go
            format=spec.format,
            quality=spec.quality,
        )
        if marks:
            encoded = mark.complete(encoded)
        return Copy(encoded, compare(picture.pixels, encoded.decoded.pixels), added)


def open_copier(
    spec: ProtectSpec, weights: Weights, secret: Secret, former: str | None = None
) -> Copier:
    """Open an engine for pictures that nobody has counted.

    `former` is the kind of engine that made what is there already.

    Raises:
        TueError: as `choose_engine` says.
    """
    engine = open_engine(spec, weights, MANY, former)
    return Copier(spec, weights, engine, secret)


def describe_copy(
    ready: Prepared, copy: Copy, *, path: str, source: str, label: str, key: str
) -> CopyRecord:
    """Return what was done to one picture, measured on its copy."""
    encoded, quality, picture = copy.encoded, copy.quality, ready.picture
    worst = find_worst_tile(picture.shown, encoded.decoded.shown)
    share = measure_share(ready.canvas.mask)
    return CopyRecord(
        path=path,
        source=source,
        source_sha256=ready.source_sha256,
        sha256=sha256(encoded.data),
        label=label,
        key=key,
        algorithm=ALGORITHM,
        format=encoded.format,
        bytes=len(encoded.data),
        known=collect_facts(_read_back(encoded)),
        largest=quality.largest,
        mean=round(quality.mean, 3),
        psnr=round(quality.psnr, 2),
        ssim=round(quality.ssim, 4),
        survival=round(encoded.survival, 3),
        delta_e=round(worst.delta_e, 2),
        worst_tile=(worst.left, worst.top, worst.side),
        small_rms=round(measure_small_rms(picture, encoded.decoded), 3),
        notes=(*picture.notes, *encoded.notes, *describe_share(share, copy.added)),
    )


def _read_back(encoded: encode.Encoded) -> codec.DecodedImage:
    """Return a copy as a reader decodes it: WebP has three channels where grayscale had one."""
    is_grey = encoded.decoded.pixels.shape[2] == 1
    return codec.decode(encoded.data) if is_grey and encoded.format == "WEBP" else encoded.decoded
