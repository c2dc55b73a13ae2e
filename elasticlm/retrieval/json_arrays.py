"""JSON files that hold one array of objects, read one object at a time: DPR's training files have several GB."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elasticlm.errors import InputError

CHUNK = 1 << 20  # characters read at once
LARGEST = 1 << 26  # characters of an object
OPENING, SEPARATOR, CLOSING = re.compile(r"\s*\["), re.compile(r"\s*,?\s*"), re.compile(r"\s*\]\s*$")


def json_array(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of every element of the array in a file, which may be compressed (.gz).

    Raises InputError, with the line, where the file is not JSON or holds no array.
    """
    decoder, text, line, expected = json.JSONDecoder(), "", 1, OPENING
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8-sig") as file
        ):
            ended = False
            while not ended:
                chunk = file.read(CHUNK)
                text, ended = text + chunk, not chunk
                if expected is OPENING:
                    if not (start := OPENING.match(text)):
                        raise InputError(f"{path}, line 1: expected an array of objects, [{{...}}, ...]")
                    line += text.count("\n", 0, start.end())
                    text, expected = text[start.end() :], SEPARATOR
                while not (ended and CLOSING.match(text)):
                    start = SEPARATOR.match(text)
                    assert start is not None  # it matches nothing, too
                    try:
                        value, end = decoder.raw_decode(text, start.end())
                    except (json.JSONDecodeError, RecursionError) as error:
                        if not ended and len(text) < LARGEST:
                            break  # the rest of the object comes with the next chunk
                        position = getattr(error, "pos", start.end())
                        raise InputError(
                            f"{path}, line {line + text.count(chr(10), 0, position)}: not JSON ({error})"
                        ) from None
                    yield f"{path}, line {line + text.count(chr(10), 0, start.end())}", value
                    line += text.count("\n", 0, end)
                    text = text[end:]
    except UnicodeDecodeError:
        raise InputError(f"{path}, after line {line}: not UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}, after line {line}: not a gzip file, or cut off ({error})") from None
