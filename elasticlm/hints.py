"""Suggest the closest match for an unknown name in error messages."""

import difflib
from collections.abc import Iterable

SHOWN = 80  # characters of a name that are compared and repeated


def near_match(name: object, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` where a known name is like this one, else nothing.

    Only the first characters of a long name are compared, because the comparison takes time that grows with it.

    >>> near_match("quue", ["queue", "slack"]), near_match("x", ["queue"])
    ("; did you mean 'queue'?", '')
    """
    matches = difflib.get_close_matches(str(name)[:SHOWN].lower(), [str(one) for one in known], n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Return the message that refuses an unknown name.

    >>> unknown("field", "txt", ["text", "as"])
    "unknown field 'txt'; did you mean 'text'? (allowed: as, text)"
    >>> unknown("task", "sing", ["embed"])
    "unknown task 'sing' (allowed: embed)"
    """
    allowed = sorted(allowed)
    return f"unknown {kind} {str(name)[:SHOWN]!r}{near_match(name, allowed)} (allowed: {', '.join(allowed)})"
