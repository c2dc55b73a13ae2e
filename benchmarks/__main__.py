"""``python -m benchmarks COMMAND`` in a checkout: the same as ``elasticlm COMMAND``."""

from elasticlm.__main__ import run
from elasticlm.command import run_in_checkout

if __name__ == "__main__":
    if __package__ == "benchmarks":
        run_in_checkout()
    run()
