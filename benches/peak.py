"""Peak memory of a process of its own: `peak_bytes`, or as a command before those of slideconvert.

    python benches/peak.py PATH plan MODEL …    # writes the bytes into PATH

From VmHWM, which begins anew with the program: ru_maxrss goes on with that of the process which started it.
"""

from __future__ import annotations

import atexit
import re
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Of this process so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    from slideconvert.cli import main

    out = Path(sys.argv.pop(1))
    atexit.register(lambda: out.write_text(str(peak_bytes())))
    main()
