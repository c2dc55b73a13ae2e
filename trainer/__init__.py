"""The offline trainer: from a teacher to an elastic artifact. ``elasticlm COMMAND``."""

import os

from elasticlm.machine import cores

# OpenMP's threads sleep while they wait. Spinning, the default, doubles a step's time as soon as anything else runs on
# the machine. It must be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# It counts cores, and does not know of a control group's quota: more threads than that only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
