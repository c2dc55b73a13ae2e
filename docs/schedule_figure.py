"""Draw docs/pictures/schedule.png: which level two policies choose at each queue depth."""

from pathlib import Path

import matplotlib.pyplot as plt

from elasticlm import LatencyTable, Load, decide, parse_policy

MEANS_MS = {100: 38.4, 50: 21.1, 30: 14.2, 20: 10.4, 10: 6.5, 5: 4.7}
"""The example of docs/schedule.md."""
POLICIES = {"queue:t=192": "queue (the paper)", "deadline:t=192": "deadline (default)"}
DEPTHS = range(46)


def main() -> None:
    """Draw the picture."""
    table = LatencyTable.from_means(MEANS_MS)
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    for spec, label in POLICIES.items():
        levels = [decide(parse_policy(spec), table, Load(queue_depth=depth)).level for depth in DEPTHS]
        axis.step(DEPTHS, levels, where="post", label=label)
    axis.set(xlabel="queue depth: requests waiting behind the batch", ylabel="level", yscale="log",
             title="T = 192 ms, five service times of level 100")  # fmt: skip
    axis.set_yticks(list(MEANS_MS), list(map(str, MEANS_MS)))
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(Path(__file__).parent / "pictures/schedule.png", dpi=120)


if __name__ == "__main__":
    main()
