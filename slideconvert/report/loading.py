"""What the model card says of loading and checking a checkpoint: commands that work as they are pasted.

PATH stands for what loaders take, a folder or a Hub id; so does CKPT in commands of ours.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection

from ..core.schemes import SCHEMES

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
pip install slideconvert
vllm serve PATH
```
"""

DENSE = f"""\
The weights are stored dense, as stock transformers and stock vLLM read them:

{TRANSFORMERS.replace("IMPORT", "")}
{VLLM}"""

DENSE_QUANTIZED = """
They unpack the zeros again. With slideconvert (`pip install slideconvert`, and `import slideconvert` before the model
is loaded) transformers keeps the linears as they are: INT8 or FP8 times INT8 or FP8, on sparse tensor cores where there
are some. Without slideconvert, `trust_remote_code=True` does the same by the code in this repository. Where
slideconvert is installed beside vLLM, vLLM finds its plugin by itself and does so too.
"""

DENSE_GROUPS = """
In 4 or 8 bits with a scale for every group of weights, they are in the format that compressed-tensors calls
pack-quantized. Stock transformers unpacks them; zero points, in version 5.23, only when it is loaded with
`quantization_config=CompressedTensorsConfig(dequantize=True)`. Stock vLLM (0.32) has kernels for some: on NVIDIA GPUs
for groups of 32, 64 and 128 weights (8 bits with zero points: of 64 and 128, on Hopper), for smaller groups only
without zero points and with `--dtype float16`; on CPUs for 4 bits in bfloat16 or float16. It does not round the
activations of W4A8. With slideconvert (`pip install slideconvert`; for transformers `import slideconvert` before the
model is loaded, or without it `trust_remote_code=True`) both run all of them, on kernels made for groups.
"""

PACKED = f"""\
The weights are stored in the LAYOUT layout: DESCRIPTION. Stock
transformers and stock vLLM refuse this layout on purpose, because they would compute nonsense from it. slideconvert
teaches both of them to run it.

**vLLM** finds the plugin of slideconvert by itself, once it is installed in the same environment:

{VLLM_WITH_PLUGIN}
**transformers**, after `pip install slideconvert`:

{TRANSFORMERS.replace("IMPORT", "import slideconvert" + chr(10))}
Without slideconvert, `trust_remote_code=True` does the same by the code in this repository, after comparing every file
of it with the sha256 in config.json.

To continue a prompt, or to get the same weights in the dense layout, which stock loaders read:

```bash
slideconvert generate CKPT --prompt "..."
slideconvert relayout CKPT OUT --layout dense
```
"""

DESCRIPTIONS = {
    "slide": "re-laid into overlapping 2:4 windows, as sparse kernels want them",
    "gqs": "block sparse rows of the groups of weights that are there, the others take no room",
}

CHECK = """\
To check a copy:

```bash
slideconvert verify CKPT
```
"""


def how_to_load(
    layout: str, schemes: Collection[str], *, by_groups: bool, repo: str | None = None, branch: str | None = None
) -> str:
    """The section on loading a checkpoint in `layout`, whose quantized linears have these schemes. by_groups: whether
    whole groups are absent from some. repo: its Hub id, if it has one; branch: where, if not main."""
    grouped = [name for name in schemes if SCHEMES[name].grouped]
    packed = {"slide": len(grouped) < len(schemes), "gqs": bool(grouped) and by_groups}
    if packed.get(layout):
        text = PACKED.replace("LAYOUT", layout).replace("DESCRIPTION", DESCRIPTIONS[layout])
    else:
        text = DENSE + DENSE_QUANTIZED * (len(grouped) < len(schemes)) + DENSE_GROUPS * bool(grouped)
    return _named(text, repo, branch)


def how_to_check(repo: str | None = None, branch: str | None = None) -> str:
    """The words and the command that check a copy."""
    return _after_download(CHECK, repo, branch) if repo else CHECK


def _named(text: str, repo: str | None, branch: str | None) -> str:
    """The commands with the repository's name. Those of ours take no branch: they get a folder, downloaded first."""
    if not repo:
        return text
    if not branch:
        return text.replace("PATH", repo).replace("CKPT", repo)
    text = text.replace('"PATH"', f'"{repo}", revision={json.dumps(branch)}')
    text = text.replace("vllm serve PATH", f"vllm serve {repo} --revision {shlex.quote(branch)}")
    return _after_download(text, repo, branch)


def _after_download(text: str, repo: str, branch: str | None) -> str:
    """The text with a folder for CKPT, and its download before the first command that is ours."""
    where = ["--revision", branch] if branch else []
    folder = repo.split("/")[-1]
    download = shlex.join(["hf", "download", repo, *where, "--local-dir", folder])
    return text.replace("```bash\nslideconvert", f"```bash\n{download}\nslideconvert", 1).replace("CKPT", folder)
