"""The process that reads uploads: `python -m kronos_qlib.webui.work.upload_process`.

It can be killed when it takes too long, and on POSIX it may not take more memory than it is given;
a file that crashes a reader takes this process and not the service. By standard input and output
come and go frames: 8 bytes of length, big-endian, then as many bytes. A request is a frame of JSON
({"name", "settings"}) and one of the file; an answer a frame of JSON ({"notes", "error"}) and one
of an Arrow stream, empty on an error. Nothing is pickled.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".txt", ".tsv", ".parquet", ".feather", ".xlsx")
TEXT = {".txt": ".csv", ".tsv": ".csv"}
"""Endings of text that is read as CSV, whatever its delimiter."""
MOST_BYTES = 20 * 2**20
"""Of an uploaded file."""
MOST_ROWS, MOST_COLUMNS = 200_000, 100
MOST_UNPACKED = 200 * 2**20
"""Bytes that a compressed file may say it unpacks to."""
MOST_MEMBERS = 500
"""Files in an .xlsx, which is a zip."""
MEMORY = 2**30
"""Bytes that reading may take beyond what the process has when it begins, on POSIX."""
COMMANDS = re.compile(r"--[a-z]|mapping such as|\bin Python\b|symbol='|encoding=\"|\.tz_localize")
"""What the advice of a message for command lines and programs holds."""
STEM = "UPLOAD"
"""The symbol of a file without a column of symbols whose own name cannot be one."""


def read_frame_of(stream: IO[bytes]) -> bytes | None:
    """The next frame; None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    length = int.from_bytes(head, "big")
    data = stream.read(length)
    return data if len(data) == length else None


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Send bytes as a frame."""
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)


def read_upload(
    name: str, data: bytes, settings: dict[str, Any]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Bars and notes of an uploaded file, which lies in a private folder while it is read.

    Args:
        name: what its owner calls it: its ending says the format, its stem may be the symbol.
        settings: zone, date_order, encoding of `read_bars`.

    Raises:
        BarDataError, ConfigError: the file is too large, of another kind, or cannot be read.
    """
    from kronos_qlib.data.files.read import read_bars
    from kronos_qlib.errors import BarDataError, KronosError

    ending = Path(name).suffix.lower()
    suffix = TEXT.get(ending, ending)
    if ending not in SUFFIXES:
        raise BarDataError(f"{name}: expected a file ending in {' or '.join(SUFFIXES)}")
    if len(data) > MOST_BYTES:
        raise BarDataError(f"{name} has {len(data):,} bytes, and {MOST_BYTES:,} are the most")
    _CHECKS[suffix](name, data)
    if suffix == ".xlsx":
        frame = _sheet(name, data)

        def row_of(found: re.Match[str]) -> str:
            """As the sheet counts: the header is row 1, and blank rows are rows."""
            return f"row {frame.index[int(found[1]) - 1] + 2}"

        for symbol in (None, _stem(name)):
            try:
                found = read_bars(frame, symbol=symbol, **settings)
            except BarDataError as problem:
                if symbol is None and "symbol=" in str(problem):
                    continue  # it has no column of symbols
                text = str(problem).replace("the frame", name)
                raise BarDataError(re.sub(r"\brow (\d+)", row_of, text)) from None
            break
        return found.bars, found.notes
    with tempfile.TemporaryDirectory(prefix="kronos-upload-") as folder:
        path = Path(folder) / f"{STEM}{suffix}"
        path.write_bytes(data)
        try:
            found = read_bars(path, **settings)
        except KronosError as problem:
            # Its path is nobody's business and tells nothing.
            raise type(problem)(str(problem).replace(str(path), name)) from None
    bars = found.bars
    if bars["symbol"].unique().tolist() == [STEM]:
        bars["symbol"] = _stem(name)
    return bars, tuple(note.replace(str(path), name) for note in found.notes)


def _stem(name: str) -> str:
    from kronos_qlib.data.columns.values import symbol_problem

    stem = Path(name).stem.strip().upper()
    return STEM if not stem or symbol_problem(stem) else stem


def _check_csv(name: str, data: bytes) -> None:
    from kronos_qlib.errors import BarDataError

    rows = max(data.count(b"\n"), data.count(b"\r"))
    if rows > MOST_ROWS:
        raise BarDataError(f"{name} has {rows:,} lines, and {MOST_ROWS:,} are the most")
    first = re.split(rb"[\r\n]", data, maxsplit=1)[0]
    if max(first.count(mark) for mark in (b",", b";", b"\t", b"|")) >= MOST_COLUMNS:
        raise BarDataError(f"{name} has more than {MOST_COLUMNS} columns")


def _check_parquet(name: str, data: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kronos_qlib.errors import BarDataError

    try:
        about = pq.ParquetFile(io.BytesIO(data)).metadata
        groups = [about.row_group(each) for each in range(about.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise BarDataError(f"{name}: cannot be read as Parquet: {problem}") from None
    _check_sizes(name, about.num_rows, about.num_columns, unpacked)


def _check_feather(name: str, data: bytes) -> None:
    import pyarrow as pa

    from kronos_qlib.errors import BarDataError

    if data[:4] == b"FEA1":
        raise BarDataError(f"{name}: Feather of version 1 is not read; write it again")
    rows = 0
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as file:
            columns = len(file.schema)
            if columns <= MOST_COLUMNS:
                for place in range(file.num_record_batches):
                    rows += file.get_batch(place).num_rows
                    if rows > MOST_ROWS:
                        break
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise BarDataError(f"{name}: cannot be read as Feather: {problem}") from None
    _check_sizes(name, rows, columns, 0)


def _check_sizes(name: str, rows: int, columns: int, unpacked: int) -> None:
    from kronos_qlib.errors import BarDataError

    if rows > MOST_ROWS or columns > MOST_COLUMNS or unpacked > MOST_UNPACKED:
        raise BarDataError(
            f"{name} has {rows:,} rows or more, {columns} columns, {unpacked:,} bytes unpacked; "
            f"{MOST_ROWS:,}, {MOST_COLUMNS} and {MOST_UNPACKED:,} are the most"
        )


def _check_xlsx(name: str, data: bytes) -> None:
    from kronos_qlib.errors import BarDataError

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise BarDataError(f"{name}: cannot be read as Excel (.xlsx): {problem}") from None
    # zipfile gives no more bytes of a member than it says here.
    unpacked = sum(member.file_size for member in members)
    if len(members) > MOST_MEMBERS or unpacked > MOST_UNPACKED:
        raise BarDataError(
            f"{name} holds {len(members):,} files of {unpacked:,} bytes unpacked; {MOST_MEMBERS} "
            f"of {MOST_UNPACKED:,} are the most"
        )
    if any("vbaproject" in member.filename.lower() for member in members):
        raise BarDataError(f"{name} holds macros: save it as .xlsx or .csv without them")


_CHECKS = {
    ".csv": _check_csv,
    ".parquet": _check_parquet,
    ".feather": _check_feather,
    ".xlsx": _check_xlsx,
}


def _sheet(name: str, data: bytes) -> pd.DataFrame:
    """The first sheet, its first row the header: values and no formulas, row by row."""
    import pandas as pd

    from kronos_qlib.errors import BarDataError
    from kronos_qlib.extras import require

    openpyxl = require("openpyxl", for_="an Excel file")
    # Without it openpyxl would read entities that expand without end.
    require("defusedxml.ElementTree", for_="an Excel file")
    try:
        book = openpyxl.load_workbook(
            io.BytesIO(data), read_only=True, data_only=True, keep_links=False
        )
        sheet = book.worksheets[0]
        # A sheet may claim any size: only what is there is read, and no more than may be.
        sheet.reset_dimensions()
        rows: list[tuple[Any, ...]] = []
        for number, row in enumerate(sheet.iter_rows(values_only=True)):
            has_more = any(cell is not None for cell in row[MOST_COLUMNS:])
            is_late = number > MOST_ROWS and any(cell is not None for cell in row)
            if has_more or is_late:
                _check_sizes(name, number, len(row), 0)
            if number <= MOST_ROWS:
                rows.append(row[:MOST_COLUMNS])
        book.close()
    except BarDataError:
        raise
    except Exception as problem:  # openpyxl raises many kinds
        raise BarDataError(
            f"{name}: cannot be read as Excel (.xlsx): {type(problem).__name__}: {problem}"
        ) from None
    while rows and all(cell is None for cell in rows[-1]):
        rows.pop()
    if not rows:
        raise BarDataError(f"{name}: the first sheet is empty")
    width = max(
        (place + 1 for row in rows for place, cell in enumerate(row) if cell is not None), default=0
    )
    _check_sizes(name, len(rows) - 1, width, 0)
    header = [
        f"column {place + 1}" if cell is None else str(cell)
        for place, cell in enumerate([*rows[0], *[None] * width][:width])
    ]
    cells = [[*row, *[None] * width][:width] for row in rows[1:]]
    frame = pd.DataFrame(cells, columns=header, dtype=object)
    blank = [place for place, row in enumerate(cells) if all(cell is None for cell in row)]
    frame = frame.drop(index=blank)
    for place, column in enumerate(header):
        if header.count(column) == 1:
            frame[column] = frame.iloc[:, place].infer_objects()
    return frame


def without_commands(message: str) -> str:
    """A reader's message for people at a page, who have neither options nor Python's arguments."""
    if not COMMANDS.search(message):
        return message
    what, *advice = message.split("; ")
    # What is wrong stays, whatever it ends with; advice goes.
    shown = re.split(r"(?:: |, )(?:say|name|give|set) ", what)[0] if COMMANDS.search(what) else what
    kept = [re.sub(r"\s*\([^()]*--[^()]*\)", "", shown)]
    kept += [part for part in advice if not COMMANDS.search(part)]
    if "encoding" in message:
        kept.append("choose its encoding, gb18030 for many Chinese files")
    elif "zone" in message:
        kept.append("choose the exchange's time zone")
    elif "date_order" in message or "date-order" in message:
        kept.append("choose the order of its dates")
    elif "decimal" in message:
        kept.append("write its numbers with a point and without thousands marks")
    elif "column" in message:
        kept.append("rename the column in the file")
    return "; ".join(kept)


def main() -> None:
    """Answer requests until standard input ends."""
    _bound_memory()
    # What libraries print must not come between the frames.
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    requests = sys.stdin.buffer
    write_frame(answers, b"ready")
    answers.flush()
    while (head := read_frame_of(requests)) is not None:
        data = read_frame_of(requests)
        if data is None:
            return
        asked = json.loads(head)
        answer, table = _answer(asked["name"], data, asked["settings"])
        write_frame(answers, json.dumps(answer).encode())
        write_frame(answers, table)
        answers.flush()


def _answer(name: str, data: bytes, settings: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    import pyarrow as pa

    from kronos_qlib.errors import KronosError

    try:
        bars, notes = read_upload(name, data, settings)
        table = pa.Table.from_pandas(bars, preserve_index=False)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    except KronosError as problem:
        text = without_commands(re.sub(r"\s+", " ", str(problem)))
        return {"error": text[:2000]}, b""
    except MemoryError:
        return {"error": f"{name} needs more memory than a file here may take"}, b""
    except Exception as problem:  # a reader's own: the file is damaged in a new way
        return {"error": f"{name} cannot be read: {type(problem).__name__}"}, b""
    return {"notes": list(notes)}, sink.getvalue()


def _bound_memory() -> None:
    """From here on the process may take `MEMORY` bytes more; after what it needs is imported."""
    import pyarrow.parquet  # noqa: F401

    import kronos_qlib.data.files.read  # noqa: F401

    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        return  # Windows and macOS: bounded by the checks and the time alone


if __name__ == "__main__":
    main()
