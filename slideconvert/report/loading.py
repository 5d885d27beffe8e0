"""The sections "Load" and "Check" of the model card, with commands to copy.

PATH stands for what loaders take, a folder or a Hub id; CKPT for the same in commands of slideconvert, and in the whole
card of a checkpoint that has no Hub id; PACKAGE for what pip installs slideconvert from. No package index has
slideconvert: its name there would install whatever somebody else has published under it, so a card never shows it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection

from .. import __version__
from ..core.schemes import SCHEMES
from ..formats.registry import OWN

TRANSFORMERS = """\
```python
IMPORTfrom transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH", dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```
"""

VLLM = """\
```bash
vllm serve PATH
```
"""

VLLM_WITH_PLUGIN = """\
```bash
pip install PACKAGE
vllm serve PATH
```
"""

DENSE = f"""\
The weights are in the dense layout, which stock transformers and stock vLLM read:

{TRANSFORMERS.replace("IMPORT", "")}
{VLLM}"""

DENSE_QUANTIZED = """
Stock transformers decompresses the weights when it loads them. With slideconvert (`pip install PACKAGE`, and
`import slideconvert` before you load the model) it computes in INT8 or FP8, and can use sparse tensor cores. Without
slideconvert, `trust_remote_code=True` does the same with the code in this repository. vLLM discovers the plugin of
slideconvert if both are installed in the same environment.
"""

DENSE_GROUPS = """
Weights in 4 or 8 bits with a scale per group are in the pack-quantized format of compressed-tensors. Stock transformers
decompresses them; version 5.23 does so for weights with zero points only if you pass
`quantization_config=CompressedTensorsConfig(dequantize=True)`. Stock vLLM (0.32) has kernels for some of them: on
NVIDIA GPUs for groups of 32, 64 and 128 weights (8 bits with zero points: groups of 64 and 128, on Hopper), for
smaller groups only without zero points and with `--dtype float16`; on CPUs for 4 bits in bfloat16 or float16. It does
not quantize the activations of W4A8. With slideconvert (`pip install PACKAGE`; for transformers also `import
slideconvert` before you load the model, or `trust_remote_code=True` without it) both run all of them.
"""

PACKED = f"""\
The weights are in the LAYOUT layout: DESCRIPTION. Stock transformers
and stock vLLM refuse this layout, because they do not know its encoding. Both run it with slideconvert.

**vLLM** discovers the plugin of slideconvert in its environment:

{VLLM_WITH_PLUGIN}
**transformers**, after `pip install PACKAGE`:

{TRANSFORMERS.replace("IMPORT", "import slideconvert" + chr(10))}
Without slideconvert, `trust_remote_code=True` does the same with the code in this repository. It compares each file
with the sha256 in config.json before it runs.

To continue a prompt, or to convert the weights exactly to the dense layout, which stock loaders read:

```bash
slideconvert generate CKPT --prompt "..."
slideconvert relayout CKPT OUT --layout dense
```
"""

LOCAL = """
CKPT is the folder of this checkpoint.
"""
"""What follows the commands of a checkpoint without a Hub id."""

UNNAMED = f"""
PACKAGE is a wheel or a checkout of slideconvert {__version__}.
"""
"""What follows commands with PACKAGE, unless the card names one."""

CHECK = """\
To check a copy:

```bash
slideconvert verify CKPT
```
"""


def how_to_load(
    layout: str,
    schemes: Collection[str],
    *,
    by_groups: bool,
    repo: str | None = None,
    branch: str | None = None,
    package: str | None = None,
) -> str:
    """The section "Load" of a checkpoint in `layout`. schemes: the names of the schemes of its quantized linears.

    by_groups: whether some linears have a group pattern. repo: the Hub id, or None; branch: None for main; package:
    the wheel or repository that pip installs slideconvert from, or None.
    """
    grouped = [name for name in schemes if SCHEMES[name].grouped]
    own = OWN.get(layout)
    if own and any(own.stores(SCHEMES[name], whole_groups=by_groups) for name in schemes):
        text = PACKED.replace("LAYOUT", layout).replace("DESCRIPTION", own.description)
    else:
        text = DENSE + DENSE_QUANTIZED * (len(grouped) < len(schemes)) + DENSE_GROUPS * bool(grouped)
    if "PACKAGE" in text:
        text = text.replace("PACKAGE", shlex.quote(package)) if package else text + UNNAMED
    return _named(text, repo, branch)


def how_to_check(repo: str | None = None, branch: str | None = None) -> str:
    """The section "Check": how to verify a copy. repo, branch: as for `how_to_load`."""
    return _after_download(CHECK, repo, branch) if repo else CHECK


def _named(text: str, repo: str | None, branch: str | None) -> str:
    """The text with the repository's name in its commands. With a branch, which commands of slideconvert do not take,
    they name a folder that is downloaded first."""
    if not repo:
        return text.replace("PATH", "CKPT") + LOCAL
    if not branch:
        return text.replace("PATH", repo).replace("CKPT", repo)
    text = text.replace('"PATH"', f'"{repo}", revision={json.dumps(branch)}')
    text = text.replace("vllm serve PATH", f"vllm serve {repo} --revision {shlex.quote(branch)}")
    return _after_download(text, repo, branch)


def _after_download(text: str, repo: str, branch: str | None) -> str:
    """The text with a folder instead of CKPT, and its download before the first command of slideconvert."""
    where = ["--revision", branch] if branch else []
    folder = repo.split("/")[-1]
    download = shlex.join(["hf", "download", repo, *where, "--local-dir", folder])
    return text.replace("```bash\nslideconvert", f"```bash\n{download}\nslideconvert", 1).replace("CKPT", folder)
