"""Random texts in the tiny BERT's own words."""

import numpy as np

WORDS = """
glacier ice river rain snow cave form melt water mountain cold warm sun moon sea tide wind storm cloud forest tree leaf
root seed bird fish wolf bear stone sand soil iron gold light sound heat wave north south east west day night year
"""


def make_texts(count: int, *, seed: int, shortest: int = 4, longest: int = 12) -> list[str]:
    """Random texts of so many words, all different."""
    random = np.random.default_rng(seed)
    texts = {" ".join(random.choice(WORDS.split(), random.integers(shortest, longest))) for _ in range(2 * count)}
    return sorted(texts)[:count]
