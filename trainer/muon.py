"""Muon for processors that do not multiply bfloat16 matrices natively.

torch.optim.Muon orthogonalises its updates in bfloat16. Where a processor has no instructions for that, a step over
MiniLM's matrices takes 14 s instead of 1 s. Here the iteration runs in fp32; everything else is torch's.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Muon


class Fp32Muon(Muon):
    """torch.optim.Muon (Jordan et al. 2024), with the Newton-Schulz iteration in the precision of the gradients.

    The learning rate is adjusted as torch does it by default: times sqrt(max(1, rows / columns)).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step. Closures are not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def orthogonalised(update: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return about U V^T of a matrix U S V^T, by a quintic Newton-Schulz iteration.

    Args:
        coefficients: of the iteration x -> a x + (b A + c A A) x, A = x x^T.
        eps: least norm that the matrix is divided by.
    """
    a, b, c = coefficients
    tall = update.shape[0] > update.shape[1]
    x = update.T if tall else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
