"""What the model card says of loading and checking a checkpoint: commands that work as they are pasted.

PATH stands for what loaders take, a folder or a Hub id; so does CKPT in commands of ours.
"""

from __future__ import annotations

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

CHECK_HUB = """\
To check a copy:

```bash
hf download CKPT --local-dir NAME
slideconvert verify NAME
```
"""


def how_to_load(layout: str, *, quantized: bool, repo: str | None = None) -> str:
    """The section on loading a checkpoint in `layout`. repo: its Hub id, if it has one."""
    text = SLIDE if layout == "slide" else DENSE + (DENSE_QUANTIZED if quantized else "")
    return text.replace("PATH", repo).replace("CKPT", repo) if repo else text


def how_to_check(repo: str | None = None) -> str:
    """The words and the command that check a copy. repo: its Hub id, if it has one."""
    return CHECK_HUB.replace("CKPT", repo).replace("NAME", repo.split("/")[-1]) if repo else CHECK
