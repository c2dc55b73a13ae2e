"""What the requests in the queue are expected to cost: as much as those that were answered lately.

Their texts are not known before they are taken from the queue, and the batch in hand may be of much shorter or longer
ones.
"""

WEIGHT = 0.05
"""Weight of a new batch in the means."""


class TypicalRequest:
    """Moving means of the sequences of a request, of their padded length, and of its time that no level changes.

    >>> typical = TypicalRequest()
    >>> typical.saw(1, rows=1, tokens=100)
    >>> typical.saw(1, rows=1, tokens=20)
    >>> typical.rows, typical.tokens
    (1.0, 96.0)
    """

    def __init__(self) -> None:
        self.rows, self._all_tokens = 0.0, 0.0
        self.fixed_ms = 0.0
        """Time per request of what always runs at the largest level."""

    def saw(self, requests: int, *, rows: int, tokens: int) -> None:
        """Record a batch: its requests, its sequences and their padded length."""
        weight = WEIGHT if self.rows else 1.0
        self.rows += weight * (rows / requests - self.rows)
        self._all_tokens += weight * (rows * tokens / requests - self._all_tokens)

    def saw_fixed(self, requests: int, ms: float) -> None:
        """Record a batch of so many requests, and its time of what always runs at the largest level."""
        self.fixed_ms += WEIGHT * (ms / requests - self.fixed_ms)

    @property
    def tokens(self) -> float:
        """Padded length, such that rows x tokens is the mean of recent requests."""
        return self._all_tokens / self.rows
