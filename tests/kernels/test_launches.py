"""What the driver is given for a launch, read back from its addresses as the driver reads it."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint32, c_uint64, c_void_p
from types import SimpleNamespace
from typing import Any

import pytest

from slideconvert.kernels import driver as the_driver
from slideconvert.kernels.driver import TRITONS_OWN, Kernel, Launch


class Argument(ctypes.Structure):
    _fields_ = (("x", c_uint64), ("tokens", c_int32), ("scale", c_uint64))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], Any, int]]:
    """Of each launch the numbers of the configuration up to shared memory, the address of its parameters, and its
    kernel."""
    found: list[tuple[tuple[int, ...], Any, int]] = []

    def launch(config: int, function: int, parameters: int, extra: None) -> int:
        assert extra is None
        sizes = tuple((c_uint32 * 7).from_address(config))
        found.append((sizes, parameters, function))
        return 0

    monkeypatch.setattr(the_driver, "driver", lambda: SimpleNamespace(cuLaunchKernelEx=launch))
    return found


def at(parameters: int, place: int) -> int:
    address = (c_void_p * (place + 1)).from_address(parameters)[place]
    assert address is not None
    return address


def test_fields_are_parameters_of_their_own_with_nulls_behind(started: list[Any]) -> None:
    """As a kernel of Triton reads them; the fields keep their places when they are set anew."""
    argument = Argument(x=2**40 + 8, tokens=-3, scale=2**50)
    launch = Launch(Kernel("produce", c_void_p(77), 256), 1, 128, argument, apart=True)
    for tokens in (5, 1024):
        argument.tokens = tokens
        launch.resize(tokens)
        launch.start(0)
        sizes, parameters, function = started[-1]
        assert sizes == (tokens, 1, 1, 128, 1, 1, 256) and function == 77
        assert c_uint64.from_address(at(parameters, 0)).value == 2**40 + 8
        assert c_int32.from_address(at(parameters, 1)).value == tokens
        assert c_uint64.from_address(at(parameters, 2)).value == 2**50
        assert all(c_uint64.from_address(at(parameters, 3 + more)).value == 0 for more in range(TRITONS_OWN))


def test_a_struct_is_one_parameter(started: list[Any]) -> None:
    argument = Argument(x=1, tokens=2, scale=3)
    launch = Launch(Kernel("product", c_void_p(5), 0), (4, 2), 32, argument)
    launch.start(0)
    sizes, parameters, _ = started[0]
    assert sizes[:4] == (4, 2, 1, 32) and at(parameters, 0) == ctypes.addressof(argument)
