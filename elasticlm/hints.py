"""What somebody may have meant: the near match that refusals of unknown names end with."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Return the line that refuses an unknown name.

    >>> unknown("field", "txt", ["text", "as"])
    "unknown field 'txt': did you mean 'text'? (allowed: as, text)"
    >>> unknown("task", "sing", ["embed"])
    "unknown task 'sing' (allowed: embed)"
    """
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name).lower(), allowed, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {str(name)[:80]!r}{hint} (allowed: {', '.join(allowed)})"
