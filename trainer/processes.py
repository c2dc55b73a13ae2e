"""How the training loop computes: data-parallel processes, and the arithmetic of the encoder's passes."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT_TOKENS = 64  # up to here plain attention trains faster on a CPU than the fused kernel, whose backward is slow


class Processes:
    """The processes of one run (``torchrun --nproc_per_node N -m trainer ...``), often just this one.

    Every process knows every batch and takes its share of the rows. Losses are divided by the whole batch's size, so
    gradients add up over processes as they do over levels and chunks: one sum a step, and no wrapper around the model.

    Args:
        precision: "bf16" runs encoders in bfloat16 (weights and losses stay fp32); "auto" takes it where the processor
            multiplies bfloat16 matrices natively.
    """

    def __init__(self, precision: str = "fp32") -> None:
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.device = self._accelerator.device
        self.precision = ("bf16" if has_native_bf16() else "fp32") if precision == "auto" else precision

    @property
    def is_main(self) -> bool:
        return self._accelerator.is_main_process

    def mine(self, rows: np.ndarray) -> np.ndarray:
        """This process's share of the rows of a batch."""
        return rows[self.rank :: self.count]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return tensor if self.count == 1 else self._accelerator.reduce(tensor, reduction="sum")

    def wait(self) -> None:
        """Wait for the other processes."""
        self._accelerator.wait_for_everyone()

    @contextmanager
    def encoding(self, tokens: int, precision: str | None = None) -> Iterator[None]:
        """Return a context for encoding texts of ``tokens`` tokens: the precision, and the fastest attention kernel."""
        plain = self.device.type == "cpu" and tokens <= SHORT_TOKENS
        attention = [SDPBackend.MATH] if plain else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                                                     SDPBackend.MATH]  # fmt: skip
        bf16 = (precision or self.precision) == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), sdpa_kernel(attention):
            yield


def has_native_bf16() -> bool:
    """Whether the GPU, or else the processor, multiplies bfloat16 matrices natively.

    oneDNN must use the instructions too: ``ONEDNN_MAX_CPU_ISA`` can keep it from that.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return instructions and torch.ops.mkldnn._is_mkldnn_bf16_supported()
