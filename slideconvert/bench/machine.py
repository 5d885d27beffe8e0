"""What a result was measured on: the machine and its versions, and power, clock and temperature of the GPU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import threading
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch

from .. import __version__

PACKAGES = ("torch", "triton", "vllm", "transformers")
SENSORS = ("power.draw", "clocks.sm", "temperature.gpu")
FORMAT = "--format=csv,noheader,nounits"
EVERY = 50
"""Milliseconds between two readings."""


def machine_of(device: torch.device) -> dict[str, Any]:
    """Device, versions of what runs on it, driver and power limit."""
    found: dict[str, Any] = {"slideconvert": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if device.type != "cuda":
        return {"device": f"{platform.machine()} CPU, {os.cpu_count()} cores", **found}
    facts = torch.cuda.get_device_properties(device)
    found |= {"cuda": torch.version.cuda, "gpu_memory": facts.total_memory}
    found |= {"compute_capability": f"{facts.major}.{facts.minor}"}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", _which(device), "--query-gpu=driver_version,power.limit", FORMAT]
        driver, _, limit = subprocess.run(query, capture_output=True, text=True, check=False).stdout.partition(", ")
        found |= {"driver": driver.strip(), "power_limit_watts": limit.strip()}
    return {"device": facts.name, **found}


def _which(device: torch.device) -> str:
    return f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"


class Sensors:
    """Readings of a GPU by one nvidia-smi that runs beside the work. Without it, or on a CPU, there are none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._read: list[list[float]] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Sensors:
        if self._device.type == "cuda" and shutil.which("nvidia-smi"):
            query = ["nvidia-smi", _which(self._device), f"--query-gpu={','.join(SENSORS)}"]
            query += [FORMAT, "-lms", str(EVERY)]
            self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._follow, args=(self._process,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self.add(line)

    def add(self, line: str) -> None:
        """A line of nvidia-smi; one that has no numbers ("[N/A]") is left out."""
        try:
            values = [float(word) for word in line.split(", ")]
        except ValueError:
            return
        if len(values) == len(SENSORS):
            with self._lock:
                self._read.append(values)

    def taken(self) -> tuple[float | None, float | None, float | None]:
        """Medians of what was read since the last call: watts, megahertz, degrees Celsius; None where nothing was."""
        with self._lock:
            read, self._read = self._read, []
        if not read:
            return None, None, None
        watts, megahertz, celsius = (median(values) for values in zip(*read, strict=True))
        return watts, megahertz, celsius
