"""What the model card says of loading and checking a checkpoint: commands that work as they are pasted.

PATH stands for what loaders take, a folder or a Hub id; so does CKPT in commands of ours.
"""

from __future__ import annotations

import json
import shlex

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

SLIDE = f"""\
The weights are stored in the slide layout: re-laid into overlapping 2:4 windows, as sparse kernels want them. Stock
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

CHECK = """\
To check a copy:

```bash
slideconvert verify CKPT
```
"""


def how_to_load(layout: str, *, quantized: bool, repo: str | None = None, branch: str | None = None) -> str:
    """The section on loading a checkpoint in `layout`. repo: its Hub id, if it has one; branch: where, if not main."""
    return _named(SLIDE if layout == "slide" else DENSE + (DENSE_QUANTIZED if quantized else ""), repo, branch)


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
