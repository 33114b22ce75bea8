"""The library: pictures protected one by one, in batches or as files, for other programs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tue_cli.config import STRENGTHS, ProtectSettings
from tue_cli.dataset.discover import normalize_name
from tue_cli.dataset.manifest import read_manifest, sha256
from tue_cli.dataset.match import MARKED
from tue_cli.dataset.secret import Secret, describe_problem, parse_secret, read_secret
from tue_cli.engine.torch import Floats
from tue_cli.errors import BadSetting, ImageProblem, refuse_unless
from tue_cli.images import codec, mark, sniff
from tue_cli.images.coding import choose_kind, convert_mode
from tue_cli.images.deep import Pixels
from tue_cli.protect.codes import assign_codes, order_codes
from tue_cli.protect.context import BATCH, choose_weights
from tue_cli.protect.copier import Prepared, open_copier
from tue_cli.protect.request import ProtectSpec
from tue_cli.text import escape
from tue_cli.weights import Weights

I = TypeVar("I", Image.Image, NDArray[np.uint8])  # noqa: E741 - an image


class Protector:
    """Protects pictures as `tue protect` does, for programs. Threads may share one.

    The same picture, label, secret and settings give the same result, on any machine with the same
    kind of engine. Nothing is written.

    Args:
        weights: by name or file; None for the packaged weights.
        strength: `subtle`, `normal` or `strong`.
        settings: the method, its noise and seed; None for those of the strength.
        radius: of the noise, in [0, 1], in place of the one in `settings`.
        smooth: how much of the noise smooth areas get, in place of the one in `settings`.
        classes: the code of each label, or the labels among which codes are shared out evenly;
            other labels are refused. None: any label, whose code depends on it and the secret.
        plan: an output of `tue protect`, or its manifest, with finished copies: the codes of
            its classes are used, its weights must be the same, and `auto` goes on with its
            engine. Not together with `classes`.
        secret: as `tue secret export` writes it; None for the user's own.
        format: of files: `keep`, `png`, `jpeg` or `webp`.
        quality: of files in JPEG, WebP and AVIF, 1 to 100; None for the original's, or better.
        strip: what to remove from files: `none`, `gps` or `metadata`.
        mark: whether to write into a file's metadata that it is protected.
        backend: `torch`, `onnx` or `auto`.
        device: as `tue protect --device`.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        strength: str = "normal",
        settings: ProtectSettings | None = None,
        radius: float | None = None,
        smooth: float | None = None,
        classes: Mapping[str, str] | Iterable[str] | None = None,
        plan: str | Path | None = None,
        secret: Secret | str | None = None,
        format: str = "keep",
        quality: int | None = None,
        strip: str = "none",
        mark: bool = False,
        backend: str = "auto",
        device: str = "auto",
    ) -> None:
        """Open weights and an engine, which takes seconds: one protector serves all pictures.

        Raises:
            TueError: a setting that cannot work, weights or a device that are not there, or no
                secret.
        """
        settings = _choose_settings(strength, settings, radius, smooth)
        spec = ProtectSpec(
            paths=(),
            settings=settings,
            weights=None if weights is None else str(weights),
            device=device,
            backend=backend,
            format=format,
            quality=quality,
            strip=strip,
            mark=mark,
        )
        spec.validate()
        refuse_unless(
            classes is None or plan is None,
            "Both classes and plan were given.",
            "Leave out one of the two.",
        )
        found = choose_weights(spec)
        former = None
        if plan is not None:
            classes, former = _read_plan(Path(plan), found)
        own = _find_secret(secret)
        self._codes = _assign_codes(classes, found, own)
        self._copier = open_copier(spec, found, own, former)
        self._turn = threading.Lock()

    @property
    def engine(self) -> str:
        """What decides the bits of a result beside the settings: backend, device, precision."""
        return self._copier.engine.kind

    @property
    def codes(self) -> dict[str, str] | None:
        """The code of each label, to be kept and given again as `classes`; None for any label."""
        return None if self._codes is None else dict(self._codes)

    def find_code(self, label: str) -> str:
        """Return the code of a label.

        Raises:
            BadSetting: it is not among the classes that were given.
        """
        name = normalize_name(label)
        if self._codes is None:
            return order_codes(self._copier.secret, self._copier.weights.card.classes, name)[0]
        refuse_unless(
            name in self._codes,
            f"The label {label!r} is none of the classes.",
            "Add it to classes, or leave out classes and plan.",
        )
        return self._codes[name]

    def protect(self, image: I, label: str) -> I:
        """Return a protected picture of the same kind and shape; see `protect_batch`."""
        return self.protect_batch([image], [label])[0]

    def protect_batch(self, images: Sequence[I], labels: Sequence[str]) -> list[I]:
        """Return protected pictures, for pictures that are not files (yet).

        Up to 32 take no longer than one. What lies under alpha 0 stays as it is.

        Args:
            images: Pillow's, or arrays of bytes (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). A Pillow
                image in a palette comes back as RGB or RGBA.
            labels: the class of each.

        Raises:
            ImageProblem: another mode or shape.
            BadSetting: a label that is not among the classes, or not one for each picture.
        """
        refuse_unless(
            len(images) == len(labels),
            f"There are {len(images):,} pictures, but {len(labels):,} labels.",
            "Give one label for each picture.",
        )
        codes = [self.find_code(label) for label in labels]
        made: list[I] = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            batch = [self._prepare(image) for image in images[part]]
            for image, ready, delta in zip(
                images[part], batch, self._perturb(batch, codes[part]), strict=True
            ):
                made.append(_put_back(image, ready.picture, self._copier.add(ready, delta)))
        return made

    def protect_file(self, data: bytes, label: str, name: str = "") -> bytes:
        """Return the copy of a picture's file: the bytes that `tue protect` writes.

        Args:
            data: the bytes of the file, in any format that `tue protect` takes.
            label: its class.
            name: its file name. Only the names of camera raw files, which are refused, matter.

        Raises:
            ImageProblem: the picture cannot be protected, or is a protected copy by its mark.
            BadSetting: the label is not among the classes.
        """
        code = self.find_code(label)
        sniff.refuse_raw(PurePath(name).suffix, data)
        picture = codec.decode(data)
        if mark.has_mark(picture.metadata.xmp):
            raise ImageProblem(*MARKED)
        # The copy has no name that its format could not fit.
        kind = choose_kind(picture.format, self._copier.spec.format)
        ready = self._copier.prepare(picture, sha256(data), PurePath(f"copy.{kind.lower()}"))
        (delta,) = self._perturb([ready], [code])
        return self._copier.finish(ready, delta).encoded.data

    def _perturb(self, batch: Sequence[Prepared], codes: Sequence[str]) -> Floats:
        with self._turn:  # an engine serves one at a time
            return self._copier.perturb(batch, codes)

    def _prepare(self, image: Any) -> Prepared:
        pixels = _take_pixels(image)
        colours = 1 if pixels.shape[2] < 3 else 3
        beside = pixels[..., colours] if pixels.shape[2] > colours else None
        picture = codec.DecodedImage(pixels[..., :colours], beside, "PNG")
        digest = sha256(f"{pixels.shape}".encode() + pixels.tobytes())
        return self._copier.prepare(picture, digest, PurePath("copy.png"))


def _choose_settings(
    strength: str, settings: ProtectSettings | None, radius: float | None, smooth: float | None
) -> ProtectSettings:
    """Return the settings that were given, or of the strength, with what was given beside them."""
    refuse_unless(
        strength in STRENGTHS,
        f"There is no strength {strength!r}.",
        f"Choose one of: {', '.join(STRENGTHS)}.",
    )
    settings = settings or STRENGTHS[strength]
    if radius is not None:
        noise: Any = settings.noise
        settings = replace(settings, noise=replace(noise, radius=radius))
    return settings if smooth is None else replace(settings, smooth=smooth)


def _take_pixels(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels of a picture that is no file, (H, W, C) with C of 1 to 4."""
    if isinstance(image, Image.Image):
        plain = convert_mode(image, [])
        if plain.mode not in ("L", "LA", "RGB", "RGBA"):
            raise ImageProblem("mode", f"Pictures of mode {image.mode} cannot be protected.")
        pixels = np.asarray(plain)
    else:
        pixels = image
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] > 4 or not pixels.size:
        raise ImageProblem(
            "mode",
            f"An array of {pixels.dtype} with the shape {pixels.shape} is not a picture. Use uint8 "
            "and the shape (H, W) or (H, W, C).",
        )
    return np.ascontiguousarray(pixels)


def _put_back(image: I, picture: codec.DecodedImage, protected: Pixels) -> I:
    """Return protected pixels in the form in which the picture came."""
    if picture.alpha is not None:
        kept = np.where(picture.alpha[..., None] > 0, protected, picture.pixels)
        pixels = np.concatenate([kept, picture.alpha[..., None]], axis=2)
    else:
        pixels = protected
    if isinstance(image, Image.Image):
        made = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        made.info = {k: v for k, v in image.info.items() if k != "transparency"}
        return made
    return pixels.reshape(image.shape)


def _read_plan(plan: Path, weights: Weights) -> tuple[dict[str, str], str | None]:
    """Return the codes of a run's classes and its kind of engine, as its manifest has them.

    Raises:
        BadSetting: there is no manifest, or the run had other weights.
    """
    manifest = read_manifest(plan)
    used = manifest["run"].get("weights", {})
    refuse_unless(
        used.get("sha256") == weights.sha256,
        f"The copies in {escape(plan)} were made with other weights: {used.get('name')}.",
        "Give those as weights, or leave out plan.",
    )
    return manifest["keys"], manifest["run"].get("engine")


def _find_secret(secret: Secret | str | None) -> Secret:
    """Return a secret that was given, or else the user's own."""
    if isinstance(secret, str):
        return parse_secret(secret, "secret")
    try:
        found = secret or read_secret()
    except OSError as error:
        raise BadSetting(describe_problem(error), "Give a secret.") from error
    if found is None:
        raise BadSetting(
            "There is no secret yet.",
            "Make one with `tue secret new`, or give one that `tue secret export` wrote.",
        )
    return found


def _assign_codes(
    classes: Mapping[str, str] | Iterable[str] | None, weights: Weights, secret: Secret
) -> dict[str, str] | None:
    """Return the code of each class, where classes were given."""
    available = weights.card.classes
    if classes is None:
        return None
    if not isinstance(classes, Mapping):
        names = [normalize_name(name) for name in classes]
        return assign_codes(names, available, {}, partial(order_codes, secret, available))
    for name, code in classes.items():
        refuse_unless(
            code in available,
            f"{code!r}, the code of {name!r}, is no class of the weights {weights.name}.",
            f"Choose one of: {', '.join(available)}.",
        )
    return {normalize_name(name): code for name, code in classes.items()}
