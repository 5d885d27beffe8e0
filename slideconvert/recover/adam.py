"""AdamW one parameter at a time, so that a gradient can be applied and freed as soon as the backward pass has it.

Only one gradient is then in memory, instead of those of the whole model. Moments are float32; in CPU memory they are
copied to the device for a step and back, so that the step is the same to the bit. Whether a gradient is finite is known
to the device alone, which skips the step then: nothing waits for it, as torch.amp.GradScaler has it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
"""Decay of the moments. With 0.999 the second one still averages the first gradients when a run of some hundred steps
ends, and the held-out loss is 0.3 to 3 % higher (benches/measured/accuracy.md)."""
MOMENTS = ("exp_avg", "exp_avg_sq")
COUNT = "step"


class Adam:
    """AdamW without decay of one parameter. offload: keep the moments in CPU memory between steps."""

    def __init__(self, parameter: nn.Parameter, *, offload: bool) -> None:
        self._parameter, self._offload = parameter, offload
        self._optimizer = torch.optim.AdamW([parameter], betas=BETAS, weight_decay=0.0, fused=True)
        self._kept: dict[str, Tensor] = {}
        self._found, self._one = torch.tensor([0.0, 1.0], device=parameter.device).unbind()

    def step(self, rate: Tensor, broken: Tensor) -> Tensor:
        """Apply the gradient, unless `broken` or it is not finite; whether it was not applied, like `broken`.

        rate: float32, broken: float32, 1.0 or 0.0, scalars on the parameter's device.
        """
        assert self._parameter.grad is not None
        captured = self._parameter.is_cuda and torch.cuda.is_current_stream_capturing()
        self._optimizer.param_groups[0].update(lr=rate, capturable=captured)
        self._found.copy_(broken)
        # One kernel, where isfinite().all() has six.
        torch._amp_foreach_non_finite_check_and_unscale_([self._parameter.grad], self._found, self._one)
        self._optimizer.found_inf = self._found  # type: ignore[attr-defined]
        state = self._optimizer.state[self._parameter]
        if self._kept:
            device = self._parameter.device
            state |= {name: kept.to(device, non_blocking=True) for name, kept in self._kept.items()}
        self._optimizer.step()
        torch.autograd.graph.increment_version(self._parameter)  # fused steps do not, and dense weights are made of it
        if self._offload:
            self._keep({name: state[name] for name in MOMENTS})
            state |= self._kept
        return self._found

    def state(self) -> dict[str, Tensor]:
        """Moments and the count of steps, by name; {} before the first step."""
        if self._kept and self._parameter.is_cuda:
            torch.cuda.synchronize(self._parameter.device)  # copies may still be under way
        return dict(self._optimizer.state.get(self._parameter, {}))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned, on any device."""
        if not state:
            return
        device = self._parameter.device
        if self._offload:
            self._keep({name: state[name] for name in MOMENTS})
        moved = {name: self._kept.get(name, state[name].to(device)) for name in MOMENTS}
        self._optimizer.state[self._parameter] = {**moved, COUNT: state[COUNT].to(device)}

    def _keep(self, moments: Mapping[str, Tensor]) -> None:
        """Copy moments to CPU memory, on a GPU in the order of its work."""
        pinned = self._parameter.is_cuda
        for name, moment in moments.items():
            if name not in self._kept:
                self._kept[name] = torch.empty(moment.shape, dtype=moment.dtype, pin_memory=pinned)
            self._kept[name].copy_(moment, non_blocking=pinned)
