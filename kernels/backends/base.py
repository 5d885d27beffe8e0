"""What a backend is: one way to run quantized linears. torch.compile takes a call of any of them as one operator.

A new way is one file: a subclass that names the `form` of the prepared weight that it reads (several ways may read the
same one), the most tokens that it runs, and what it needs (`refusal`); and its entry in BACKENDS (choose.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..operand import Operand
from ..sources import versioned
from ..spec import LinearSpec
from ..specs import parse_spec

NAMESPACE = __name__.replace(".", "_")
"""Of the operator: the kernels of a package and those of a checkpoint may live in one process."""
Prepared = tuple[Tensor, ...] | list[Tensor]
"""A weight in the form that a backend computes with."""


@dataclass(frozen=True)
class Dtypes:
    """What calls of a linear will pass. x: dtype of the activations. bias: of the bias; None if there is none."""

    x: torch.dtype
    bias: torch.dtype | None = None


class Backend:
    """One way to run linears of one spec on one device. Holds no weights: the prepared weight is passed to every call.

    Subclasses say which specs they run, and take part once they stand in BACKENDS (choose.py). One object serves all
    linears of a spec: get it from `shared`, or from `choose`.
    """

    name: ClassVar[str]
    runs: ClassVar[type[LinearSpec]]
    form: str
    """The form of the prepared weight that it reads."""
    tensors: ClassVar[int] = 2
    """How many tensors that has."""
    most_tokens: ClassVar[int | None] = None
    """The most tokens that it runs; None for any number."""
    on_request: ClassVar[bool] = False
    """Whether it is only chosen when its name is asked for."""
    operations: ClassVar[tuple[str, ...]] = ()
    """The sources in kernels/ on which its times depend: folders or files."""

    def __init__(self, spec: Any, device: torch.device) -> None:
        self.spec, self.device, self.text = spec, device, spec.text

    @classmethod
    def refusal(cls, spec: Any, device: torch.device) -> str:
        """Why this backend cannot run such a linear there; "" if it can."""
        raise NotImplementedError

    @classmethod
    def drawback(cls, spec: Any) -> str:
        """Why others are preferred for such linears, though it can run them; "" if they are not."""
        return ""

    @classmethod
    def timed_as(cls, spec: Any) -> str:
        """The linear under whose name its times are kept: all linears of that name take the same time."""
        return str(spec)

    @classmethod
    def timed_name(cls) -> str:
        """The name under which its times are kept: a change of its kernels makes the times before it worthless."""
        return versioned(cls.name, *cls.operations)

    @property
    def nbytes(self) -> int:
        """Bytes of the prepared weight, without scales."""
        raise NotImplementedError

    def prepare(self, weight: Any) -> tuple[Tensor, ...]:
        """The prepared weight, on `device`. ValueError if the weight is damaged."""
        raise NotImplementedError

    def complete(self, prepared: Prepared, dtypes: Dtypes) -> None:
        """Find out all that calls of any number of tokens depend on, so that no call has to time or compile it."""

    def weight(self, prepared: Prepared) -> Any:
        """The weight that `prepare` was given; its tensors are the same to the bit."""
        raise NotImplementedError

    def run(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        """x [..., K] float16, bfloat16 or float32; bias [N] -> [..., N] like x. ValueError if x is elsewhere."""
        raise NotImplementedError

    def way(self, tokens: int) -> tuple[Backend, slice]:
        """What runs so many tokens, and which tensors of the prepared weight it reads."""
        return self, slice(None)

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        """How it reads activations that a producer has quantized: the operand, and how many rows for so many tokens.
        None if it quantizes them on its own."""
        return None

    def run_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """`run` on codes [rows or more, width] of its operand, scale [M, 1] float32 -> [M, N] of `dtype`."""
        raise NotImplementedError

    def __call__(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        """`run`, as one operator where torch.compile traces it."""
        if torch.compiler.is_compiling():
            out: Tensor = LINEAR(x, prepared, bias, self.text, self.name)
            return out
        return self.run(x, prepared, bias)


_SHARED: dict[tuple[str, LinearSpec, torch.device], Backend] = {}


def shared(kind: type[Backend], spec: LinearSpec, device: torch.device) -> Backend:
    """The one backend of its kind for a spec and device in this process: plans and compiled kernels are made once."""
    key = (kind.name, spec, device)
    if key not in _SHARED:
        _SHARED[key] = kind(spec, device)
    return _SHARED[key]


NAMED: dict[tuple[str, str, torch.device], Backend] = {}
"""The backends of this process by name, text of the spec and device: what operators find them by (`by_text`)."""


def by_text(name: str, spec: str, device: torch.device) -> Backend:
    """The backend of this process for a linear of which an operator knows words alone. ValueError if there is none."""
    found = NAMED.get((name, spec, device))
    if found is None:
        from .choose import named  # not in every call: an import takes a microsecond even if there is nothing to import

        found = named(name, parse_spec(spec), device)
    return found


def _run(x: Tensor, prepared: list[Tensor], bias: Tensor | None, spec: str, backend: str) -> Tensor:
    return by_text(backend, spec, prepared[0].device).run(x, prepared, bias)


def _shape(x: Tensor, prepared: list[Tensor], bias: Tensor | None, spec: str, backend: str) -> Tensor:  # noqa: ARG001
    return x.new_empty((*x.shape[:-1], parse_spec(spec).rows))


LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
LIBRARY.define("linear(Tensor x, Tensor[] prepared, Tensor? bias, str spec, str backend) -> Tensor")
LIBRARY.impl("linear", _run, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::linear", _shape, lib=LIBRARY)
LINEAR = getattr(torch.ops, NAMESPACE).linear.default
"""A call of any backend, for torch.compile."""
