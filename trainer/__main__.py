"""``elasticlm COMMAND`` in a checkout, ``elasticlm COMMAND`` elsewhere (for torchrun)."""

from elasticlm.__main__ import run
from elasticlm.command import run_in_checkout

if __name__ == "__main__":
    if __package__ == "trainer":
        run_in_checkout()
    run()
