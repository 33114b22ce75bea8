"""Compare what exiftool says of pictures with what it says of their copies.

    python -m benchmarks.metadata DIR...                     # all pictures below each folder
    python -m benchmarks.metadata --format png DIR           # copies in another format
    python -m benchmarks.camera DIR                          # first, to draw files of cameras

Every folder is protected by the command, in one step, and all groups of all pictures are compared.
What one table allows is counted by its reason; any other difference is printed, and the exit code
is 1. A part that is left out must be named in a note. exiftool shares no code with tue.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import script
from benchmarks.command import build_environment, build_protect_command
from benchmarks.rows import Row
from benchmarks.summary import format_table
from tue_cli.dataset.manifest import read_manifest
from tue_cli.images.sniff import sniff_format

TOGETHER = 100
"""Files that exiftool reads at a time."""


class Allowed(NamedTuple):
    """Differences that copies may have."""

    copies: str
    """Formats, such as `JPEG to PNG`; this and the next are regular expressions."""
    tags: str
    """May go on with values: `TAG was [OLD] is [NEW]`, None where the tag is not there or blank."""
    why: str
    note: str = ""
    """What a note on the copy must say."""


GONE = r" was .* is None"
CODING = "says how the pixels are coded, packed and laid out"
MOVED = "is about a maker's note, which lies elsewhere in the file"
PREVIEW = "left out the embedded preview"
VIDEO, GAIN_MAP = "left out the video of a motion photo", "left out the HDR gain map"
FRAMES = "only the first of several frames was kept"
ALLOWED = (
    # What is left out, each with its note.
    Allowed(".*", r"IFD1:\S+" + GONE, "is about the thumbnail", PREVIEW),
    Allowed(".*", r"\w+:(Preview|Thumbnail)Image" + GONE, "is a preview", PREVIEW),
    Allowed(".*", r"XMP-xmp:Thumbnail\S+" + GONE, "is a preview", PREVIEW),
    Allowed(".*", r"ExifTool:Warning was .*Error reading PreviewImage.*", "is a preview", PREVIEW),
    Allowed("TIFF to .*", r"(SubIFD\d*|IFD[1-9]):\S+" + GONE, "is about smaller pictures", PREVIEW),
    Allowed("JPEG to .*", r"XMP-(GCamera|Container):\S+" + GONE, "is about a film", VIDEO),
    Allowed(
        "JPEG to .*",
        r"(XMP-(hdrgm|HDRGainMap|Container)|MPF0|MPImage\d):\S+" + GONE,
        "is about a gain map",
        GAIN_MAP,
    ),
    Allowed("JPEG to .*", r"(MPF0|MPImage\d):\S+" + GONE, "is about further frames", FRAMES),
    Allowed(
        ".*",
        r"(JUMBF\w*|XMP-dcterms):\S+" + GONE,
        "vouches for the original's bytes",
        "left out content credentials",
    ),
    Allowed("TIFF to .*", r"Photoshop:Layer\S+" + GONE, "is about layers", "left out the layers"),
    Allowed("JPEG to .*", r"AdobeCM:\S+" + GONE, "is private", "left out private segment"),
    Allowed("JPEG to .*", r"Samsung:\S+" + GONE, "is private", "left out data after the end"),
    Allowed(r"\w+ to WEBP", r"(IPTC|Photoshop):\S+" + GONE, "has no place there", "WebP has no"),
    Allowed(r"\w+ to WEBP", "Comment" + GONE, "has no place there", "left out the comment"),
    # What is another in the copy.
    Allowed(".*", r"ExifTool:Warning" + GONE, "warns of what is sound in the copy"),
    Allowed("JPEG to .*", r"Adobe:\w+", CODING),
    Allowed("JPEG to JPEG", r"File:EncodingProcess was \[1\] is \[0\]", CODING),
    Allowed("JPEG to JPEG", r"File:YCbCrSubSampling was .* is \['1 1'\]", CODING, "at higher qual"),
    Allowed("JPEG to JPEG", r"File:YCbCrSubSampling was \['1 2'\] is \['1 1'\]", CODING),
    Allowed("PNG to PNG", r"PNG:(BitDepth|ColorType|Interlace|Palette|Transparency)", CODING),
    Allowed("PNG to PNG", r"PNG:Animation\w+|File:(FileType|MIMEType)", CODING),
    Allowed(
        "TIFF to .*",
        r"IFD0:(BitsPerSample|ColorMap|Compression|ExtraSamples|FillOrder|Image(Width|Height)|"
        r"InkSet|JPEGTables|S?M(ax|in)SampleValue|OtherImageStart|PhotometricInterpretation|"
        r"PlanarConfiguration|Predictor|PreviewImage(Start|Length)|ReferenceBlackWhite|"
        r"RowsPerStrip|SampleFormat|SamplesPerPixel|Strip(Offsets|ByteCounts)|SubfileType|"
        r"Tile\w+|YCbCrSubSampling)",
        CODING,
    ),
    Allowed("TIFF to TIFF", r"File:(ExifByteOrder|FileType\w*|MIMEType)", CODING),
    Allowed("TIFF to .*", r"(Canon|MakerNotes|Sony|Panasonic|Pentax)\w*:\w+", MOVED),
    Allowed("TIFF to .*|JPEG to PNG", r"PreviewIFD:PreviewImageStart", MOVED),
    Allowed("JPEG to PNG", r"Comment was \['base64:.*", "is the same bytes, known to be Latin-1"),
    Allowed("JPEG to PNG", "XMP-xmpNote:HasExtendedXMP" + GONE, "names a part, and XMP is whole"),
    Allowed("TIFF to .*", r"ExifTool:Warning was None is .*(MakerNotes|maker notes).*", MOVED),
    Allowed(
        "TIFF to TIFF",
        r"IFD0:\w+ was \[.+, .+\] is \[.+\]",
        "is there several times",
        "left out further values of TIFF tags",
    ),
    Allowed(
        "(AVIF|HEIF) to .*",
        r"QuickTime:(MediaData\w*|ChromaFormat|SeqProfile|CompatibleBrands|MajorBrand|"
        r"HandlerDescription|ImagePixelDepth|ImageSpatialExtent|GeneralProfileIDC|"
        r"GenProfileCompatibilityFlags|ConstraintIndicatorFlags|QuickTime_HEVCConfig\w*)|"
        r"Meta:PrimaryItemReference",
        CODING,
    ),
    Allowed("HEIF to HEIF", r"File:(FileType\w*|MIMEType)", CODING),
    Allowed(
        "BMP to BMP",
        r"File:(\w+Mask|BMPVersion|BitDepth|Compression|Image(Height|Length)|"
        r"Num(Important)?Colors|Planes|ProfileDataOffset)",
        CODING,
    ),
    Allowed("BMP to BMP", r"File:(PixelsPerMeter[XY]|ColorSpace|BMP_0x\w+) was None is .*", CODING),
)
"""The one table. Of copies in another format, `find_differences` leaves out more."""
_CODED = re.compile(r"(File|ExifTool|GIF|JFIF|PNG|QuickTime|RIFF|Ducky):")
_COMMENTS = {f"{group}:Comment": "Comment" for group in ("File", "GIF", "PNG")}

Tags = dict[str, list[Any]]
"""What exiftool says, by group and tag: one value for each time that it says so."""
Differences = dict[str, tuple[Any, Any]]


def describe(paths: Sequence[Path]) -> list[Tags]:
    """Return what exiftool says of each file, but for its name, its times and its size."""
    found: list[Tags] = []
    for at in range(0, len(paths), TOGETHER):
        some = [str(path) for path in paths[at : at + TOGETHER]]
        command = ["exiftool", "-config", "", "-j", "-n", "-b", "-a", "-u", "-U", "-e", "-G1:4"]
        done = subprocess.run([*command, "--", *some], capture_output=True, check=False)
        told = json.loads(done.stdout.decode(errors="replace"))
        if [each["SourceFile"] for each in told] != some:
            raise SystemExit(f"exiftool did not read all files: {done.stderr.decode()}")
        found += map(_sort_tags, told)
    return found


def _sort_tags(told: dict[str, Any]) -> Tags:
    apart = ("System:", "SourceFile", "ExifTool:ExifToolVersion", "File:FileSize")
    tags: Tags = {}
    for tag, value in told.items():
        if not tag.startswith(apart):
            tags.setdefault(re.sub(r":Copy\d+", "", tag), []).append(value)
    return tags


def find_differences(was: Tags, now: Tags, copies: str) -> Differences:
    """Return tags that a picture and its copy do not share, with their values.

    Of a copy in another format, only what the picture says counts, and not how a format says it.
    """
    if re.fullmatch(r"(\w+) to \1", copies):
        tags = was.keys() | now.keys()
    else:
        # A comment has another name there, and comments another order.
        was, now = (
            {_COMMENTS.get(tag, tag): sorted(values, key=str) for tag, values in told.items()}
            for told in (was, now)
        )
        tags = {tag for tag in was if not _CODED.match(tag)}
    return {tag: (was.get(tag), now.get(tag)) for tag in tags if was.get(tag) != now.get(tag)}


def explain(tag: str, values: tuple[Any, Any], copies: str, notes: Iterable[str]) -> list[Allowed]:
    """Return the rows of the table that allow a difference."""
    told = " | ".join(notes)
    was, now = (None if _is_blank(value) else value for value in values)
    difference = f"{tag} was {was} is {now}"
    return [
        row
        for row in ALLOWED
        if re.fullmatch(row.copies, copies)
        and row.note in told
        and re.fullmatch(f"({row.tags})( was .*)?", difference, re.DOTALL)
    ]


def _is_blank(values: list[Any] | None) -> bool:
    """Say whether there is nothing, or only zeros in the place of a picture."""
    return all(re.fullmatch("base64:A*=*", str(value)) for value in values or ())


class Compared(NamedTuple):
    """A picture and its copy."""

    picture: str
    copies: str
    differences: Differences
    notes: tuple[str, ...]


def compare_all(source: Path, output: Path) -> Iterator[Compared]:
    """Yield every picture of a folder that has a copy in the other, with what is different."""
    records = read_manifest(output)["pictures"]
    originals = [source / record["source"] for record in records]
    pairs = zip(
        describe(originals), describe([output / record["path"] for record in records]), strict=True
    )
    for record, original, (was, now) in zip(records, originals, pairs, strict=True):
        copies = f"{sniff_format(original.read_bytes())} to {record['format']}"
        found = find_differences(was, now, copies)
        yield Compared(record["source"], copies, found, tuple(record["notes"]))


def protect(arguments: argparse.Namespace, source: Path, output: Path) -> dict[str, Any]:
    """Protect a folder, of which some pictures may be refused, and return the summary."""
    options = ["--format", arguments.format, "--labels", "single", "--steps", "1"]
    command = build_protect_command(
        source, output, weights=arguments.weights, device=arguments.device, options=options
    )
    environment = build_environment(arguments.threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"tue protect ended with {done.returncode}:\n{done.stderr}")
    manifest: dict[str, Any] = read_manifest(output)
    return manifest


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "metadata")
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="a folder of pictures")
    add("--format", default="keep", help="of the copies")
    add("--weights", default="cifar10", help="name or file")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Compare every folder, and print what the table does not allow."""
    rows = script.open_rows(arguments, dtype="chosen by tue", device=arguments.device)
    exiftool = subprocess.run(["exiftool", "-ver"], capture_output=True, text=True, check=True)
    found: list[Row] = []
    for source in arguments.folders:
        began, name = time.monotonic(), source.resolve().name
        output = arguments.work / f"{name}-{arguments.format}"
        refused = Counter(
            failure["reason"] for failure in protect(arguments, source, output)["summary"]["failed"]
        )
        reasons: Counter[str] = Counter()
        unexplained: list[str] = []
        compared = list(compare_all(source, output))
        for picture, copies, differences, notes in compared:
            for tag, values in sorted(differences.items()):
                if allowed := explain(tag, values, copies, notes):
                    reasons[allowed[0].why] += 1
                    continue
                was, now = (json.dumps(value, ensure_ascii=False)[:80] for value in values)
                unexplained.append(f"{picture}: {tag}: {was} became {now}")
                script.say(unexplained[-1])
        row = rows.add(
            "metadata",
            {"folder": name, "format": arguments.format},
            pictures=len(compared) + refused.total(),
            copies=len(compared),
            refused=dict(refused.most_common()),
            explained=dict(reasons.most_common()),
            unexplained=unexplained,
            exiftool=exiftool.stdout.strip(),
            seed=0,
            n=len(compared),
            seconds=round(time.monotonic() - began, 3),
        )
        found.append(row)
    columns = ("copies", "refused", "explained", "unexplained")
    table = [
        [row["settings"]["folder"], row["copies"], sum(row["refused"].values())]
        + [sum(row["explained"].values()), len(row["unexplained"])]
        for row in found
    ]
    script.say(format_table(["folder", *columns], table))
    if any(row["unexplained"] for row in found):
        raise SystemExit(1)


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
