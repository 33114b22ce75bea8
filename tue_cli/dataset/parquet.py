"""Shards in Parquet, with a column of pictures as Hugging Face's data sets have it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from tue_cli.dataset.shards import FIELD, USUAL_LABELS, BadShard, Sample, format_label
from tue_cli.text import escape

MOST_GROUP: Final = 1 << 32
"""Bytes of a row group, unpacked."""
ROWS_READ: Final = 32
ROWS_WRITTEN, BYTES_WRITTEN = 100, 1 << 26
"""A row group is written at so many rows or bytes, whichever comes first."""


def read_parquet(file: BinaryIO, labels: str) -> Iterator[Sample]:
    """Yield the rows of a Parquet file with its column of pictures.

    That is a struct of `bytes` and `path`, or a binary column named `image`. The label is in the
    column that `labels` names or in one with a usual name; numbers of a class get its name.

    Raises:
        BadShard: no Parquet, no pictures in it, or no labels.
    """
    import pyarrow as pa

    try:
        parquet = _open_parquet(file)
        schema = parquet.schema_arrow
        column, label, names = _find_image_column(schema), None, None
        if labels != "single":
            label = _find_label_column(schema, labels)
            names = _read_class_names(schema, label)
        number = 0
        for batch in parquet.iter_batches(batch_size=ROWS_READ):
            pictures = batch.column(column).to_pylist()
            told = batch.column(label).to_pylist() if label is not None else [""] * len(pictures)
            for row, (picture, value) in enumerate(zip(pictures, told, strict=True)):
                data, path = picture, ""
                if isinstance(picture, dict):
                    data, path = picture.get("bytes"), picture.get("path") or ""
                if names is not None and isinstance(value, int) and 0 <= value < len(names):
                    value = names[value]
                known = f"{number}: {path}" if path else str(number)
                rest = (batch, row, column)
                yield Sample(known, (data,), (path,), format_label(value), rest)
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise _explain_parquet(error) from None


def list_parquet_labels(file: BinaryIO, labels: str) -> Iterator[str | None]:
    """Yield the label of every row, reading no other column; raise BadShard as `read_parquet`."""
    import pyarrow as pa

    try:
        parquet = _open_parquet(file)
        column = _find_label_column(parquet.schema_arrow, labels)
        names = _read_class_names(parquet.schema_arrow, column)
        for batch in parquet.iter_batches(batch_size=1 << 14, columns=[column]):
            for value in batch.column(0).to_pylist():
                if names is not None and isinstance(value, int) and 0 <= value < len(names):
                    value = names[value]
                yield format_label(value)
    except (pa.ArrowException, OSError) as error:
        raise _explain_parquet(error) from None


def _open_parquet(file: BinaryIO) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _explain_parquet(error) from None
    for number in range(parquet.metadata.num_row_groups):
        if parquet.metadata.row_group(number).total_byte_size > MOST_GROUP:
            raise BadShard("unsafe", "A row group would take more than 4 GB of memory.")
    return parquet


def _explain_parquet(error: Exception) -> BadShard:
    said = " ".join(str(error).split())[:160].rstrip(".")
    return BadShard("not-parquet", f"This is not a Parquet file, or it is damaged: {escape(said)}.")


def _find_image_column(schema: Any) -> str:
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            inner = {field.name: field.type for field in kind}
            return "bytes" in inner and _is_binary(inner["bytes"])
        return False

    found = [field.name for field in schema if holds(field.type)]
    found = found or [f.name for f in schema if f.name == "image" and _is_binary(f.type)]
    columns = ", ".join(map(escape, schema.names[:12]))
    if not found:
        raise BadShard("no-pictures", f"No column has pictures. The columns are: {columns}.")
    if len(found) > 1:
        raise BadShard(
            "no-pictures",
            f"Several columns have pictures: {', '.join(map(escape, found))}.",
        )
    return str(found[0])


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _find_label_column(schema: Any, labels: str) -> str:
    wanted = (labels.removeprefix(FIELD),) if labels.startswith(FIELD) else USUAL_LABELS
    found = next((name for name in wanted if name in schema.names), None)
    if found is None:
        raise BadShard(
            "no-labels",
            f"There is no column {escape(wanted[0])}. The columns are: "
            f"{', '.join(map(escape, schema.names[:12]))}. Name one with --labels {FIELD}NAME, or "
            "use --labels single.",
        )
    return found


def _read_class_names(schema: Any, column: str) -> list[str] | None:
    """Return the names of the classes that Hugging Face's metadata has for a column of numbers."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        names = told["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def read_layout(file: BinaryIO) -> tuple[Any, str]:
    """Return the schema of a Parquet file and how it is compressed.

    Raises:
        BadShard: no Parquet, or a damaged one.
    """
    parquet = _open_parquet(file)
    packed = "snappy"
    if parquet.metadata.num_row_groups and parquet.metadata.num_columns:
        packed = parquet.metadata.row_group(0).column(0).compression.lower()
    return parquet.schema_arrow, "none" if packed == "uncompressed" else packed


class ParquetWriter:
    """Writes a Parquet file with the schema, metadata and compression of the original."""

    def __init__(self, place: Path, schema: Any, compression: str) -> None:
        import pyarrow.parquet as pq

        self._parquet = pq.ParquetWriter(place, schema, compression=compression)
        self._rows: list[Any] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._parquet.close()

    def write(self, sample: Sample, copies: Sequence[tuple[bytes, str]]) -> None:
        """Add a row with its picture replaced."""
        import pyarrow as pa

        batch, row, name = sample.rest
        one = batch.slice(row, 1)
        place = one.schema.get_field_index(name)
        kind = one.schema.field(place).type
        ((data, path),) = copies
        value: Any = data
        if pa.types.is_struct(kind):
            value = {**one.column(place)[0].as_py(), "bytes": data}
            if value.get("path"):
                value["path"] = path
        columns = [*one.columns]
        columns[place] = pa.array([value], kind)
        self._rows.append(pa.RecordBatch.from_arrays(columns, schema=one.schema))
        self._bytes += self._rows[-1].nbytes
        if len(self._rows) >= ROWS_WRITTEN or self._bytes >= BYTES_WRITTEN:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            table = pa.Table.from_batches(self._rows).combine_chunks()
            self._parquet.write_table(table, row_group_size=len(table))
        self._rows, self._bytes = [], 0


def write_part(place: Path, rows: Sequence[dict[str, Any]], about: Mapping[str, Any]) -> None:
    """Write the part of a manifest that tells of one shard: a row for each picture.

    Args:
        place: of the new file.
        rows: `state` and what is known of each; what has no column of its own is in `more`.
        about: the run and the shard, for the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    kinds = {
        **dict.fromkeys(("state", "path", "source", "source_sha256", "sha256", "label"), text),
        **dict.fromkeys(("key", "format", "reason", "message"), text),
        **dict.fromkeys(("bytes", "algorithm", "largest"), whole),
        **dict.fromkeys(("mean", "psnr", "ssim", "survival", "small_rms"), number),
        "notes": pa.list_(text),
    }
    schema = pa.schema([*kinds.items(), ("more", text)])
    told = [
        {name: _spell(value) for name, value in row.items() if name in kinds}
        | {"more": json.dumps({name: v for name, v in row.items() if name not in kinds})}
        for row in rows
    ]
    schema = schema.with_metadata({"tue": json.dumps(about, sort_keys=True)})
    pq.write_table(pa.Table.from_pylist(told, schema), place)


def _spell(value: Any) -> Any:
    """Return a text with the bytes spelled out that are no UTF-8, as names of files may have."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
