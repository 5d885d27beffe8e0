"""The model card (README.md) of a converted checkpoint: what was done, what was measured, how to load and check it.

Every number comes from the report; what was not measured is not mentioned. Names and notes may come from an
untrusted checkpoint, so Markdown and HTML in them are made inert.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..hub.listing import valid_id
from ..patterns import Pattern
from ..schemes import SCHEMES
from .record import Report
from .summary import (
    by_kind,
    converted,
    errors,
    notes,
    patterns,
    percent,
    printable,
    schemes,
    size,
    zero_share,
)

NAMES_SHOWN = 3
"""Linears that a note names before it only counts them."""

LOADING_DENSE = """\
The weights are stored dense, as stock transformers and stock vLLM read them:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH")
```

```bash
vllm serve PATH
```
"""

LOADING_QUANTIZED = """
They unpack the zeros again. `import slideconvert` first, and transformers keeps the linears as they are: INT8 or FP8
times INT8 or FP8, on sparse tensor cores where there are some. Without slideconvert, `trust_remote_code=True` does the
same by the code in this repository.
"""

LOADING_SLIDE = """\
The weights are stored in the slide layout: re-laid into overlapping 2:4 windows, as sparse kernels want them. Stock
transformers and stock vLLM refuse this layout on purpose, because they would compute nonsense from it.

To get the same weights in the dense layout, which both of them load:

```bash
slideconvert relayout CKPT OUT --layout dense
```

To run the checkpoint as it is:

```bash
slideconvert generate CKPT --prompt "..."
```

```python
import slideconvert
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH")
```

Without slideconvert, `trust_remote_code=True` does the same by the code in this repository, after comparing every file
of it with the sha256 in config.json.
"""


def render_card(report: Report, *, license: str | None = None, language: list[str] | None = None) -> str:
    """The whole README.md. `license` and `language` are stated only when given: they are the source model's."""
    sections = [
        _front_matter(report, license, language),
        f"# {_text(report.source)}, {_what(report)}\n\n{_about(report)}",
        f"## Measured\n\n{_measured(report)}",
        f"## Recipe\n\n{_fenced(_yaml(report.recipe), 'yaml')}",
        f"## Load\n\n{_loading(report)}",
        f"## Check\n\n{_check(report)}",
        f"## Limits\n\n{_limits(report)}",
    ]
    return "\n".join(sections)


def _loading(report: Report) -> str:
    if report.layout == "slide":
        return LOADING_SLIDE
    return LOADING_DENSE + (LOADING_QUANTIZED if _quantized(report) else "")


def source_license(folder: Path) -> dict[str, Any]:
    """license and language as the source's own model card (README.md front matter) states them; {} if it does not."""
    import yaml

    card = folder / "README.md"
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n") if card.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        words = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}  # a card nobody can read states nothing
    words = words if isinstance(words, dict) else {}
    languages = words.get("language")
    languages = [languages] if isinstance(languages, str) else languages
    out = {"license": words.get("license"), "language": languages}
    return {key: value for key, value in out.items() if isinstance(value, str | list)}


def _yaml(values: dict[str, Any]) -> str:
    # Imported late: the other outputs of a conversion do not need it.
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10_000)


def _front_matter(report: Report, license: str | None, language: list[str] | None) -> str:
    quantized, sparse = _quantized(report), _sparse(report)
    metadata: dict[str, Any] = {}
    if license:
        metadata["license"] = license
    if language:
        metadata["language"] = list(language)
    if "/" in report.source and valid_id(report.source):  # a folder's name is no model on the Hub
        metadata["base_model"] = report.source
        if quantized:
            metadata["base_model_relation"] = "quantized"
    metadata["library_name"] = "transformers"
    metadata["pipeline_tag"] = "text-generation"
    form = ["compressed-tensors", *quantized] if quantized else []
    metadata["tags"] = ["slideconvert", "slidesparse", *form, *(["sparse"] if sparse else []), *patterns(report)]
    return f"---\n{_yaml(metadata)}---\n"


def _quantized(report: Report) -> list[str]:
    """The 8-bit schemes in use."""
    return [name for name in schemes(report) if name in SCHEMES and SCHEMES[name].quantized]


def _sparse(report: Report) -> bool:
    """Whether any linear follows a pattern that demands zeros: all but 2:inf do."""
    return any(Pattern.parse(name).prunes for name in patterns(report))


def _text(text: str) -> str:
    """Text for Markdown prose and tables: one line, no markup, no HTML."""
    flat = " ".join(printable(text).split())
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", html.escape(flat, quote=False))


def _code(text: str) -> str:
    """Text as inline code. Backticks and pipes would end the span or the table cell, so they are replaced."""
    return f"`{' '.join(printable(text).split()).replace('`', chr(0xFFFD)).replace('|', chr(0xFFFD))}`"


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text)}{fence}\n"


def _what(report: Report) -> str:
    """'2:8 sparse INT8'."""
    names = " + ".join(patterns(report))
    return " ".join(part for part in (names + " sparse" * _sparse(report), " + ".join(schemes(report)).upper()) if part)


def _about(report: Report) -> str:
    """One paragraph: what the weights are now, and what was left alone."""
    count = len(converted(report))
    kept = len(report.layers) - count
    source = _code(report.source) + (f" (revision {_code(report.revision)})" if report.revision else "")
    rules = [
        f"at least two of every {name.removeprefix('2:')} consecutive input weights are zero ({name}"
        + (f", {used:,} linears)" if len(patterns(report)) > 1 else ")")
        for name, used in patterns(report).items()
        if Pattern.parse(name).prunes
    ]
    unpruned = patterns(report).get("2:inf", 0)
    if unpruned:
        rules.append(f"nothing is pruned (2:inf, {unpruned:,} linears)")
    sentences = [
        f"{source}, converted by slideconvert {__version__}.",
        f"In {count:,} of its {len(report.layers):,} decoder linears {' or '.join(rules)}." if rules else "",
        *(_storage(name, sum(layer.scheme == name for layer in converted(report))) for name in schemes(report)),
        f"{kept:,} {'linear is' if kept == 1 else 'linears are'} kept as in the source." if kept else "",
        "Everything else (embeddings, norms, head) is copied from the source.",
    ]
    return " ".join(sentence for sentence in sentences if sentence) + "\n"


def _storage(name: str, count: int) -> str:
    weights = f"{count:,} {'linear has its' if count == 1 else 'linears have their'} weights stored as {name.upper()}"
    if name in SCHEMES and SCHEMES[name].quantized:
        return f"{weights} with one scale per output channel; activations are quantized per token when the model runs."
    return f"{weights}, not quantized."


def _measured(report: Report) -> str:
    """Sizes, zeros and, if measured, perplexity; then the errors per kind."""
    sums = report.totals
    rows: list[tuple[str, ...]] = [
        ("All weight files", _bytes(sums.file_bytes_before), _bytes(sums.file_bytes_after)),
        ("Decoder linears", _bytes(sums.linear_bytes_before), _bytes(sums.linear_bytes_after)),
        ("Zeros in the decoder linears", "", f"{percent(zero_share(report))} ({sums.zeros:,} of {sums.weights:,})"),
    ]
    if report.perplexity:
        values = [f"{report.perplexity[key]:.3f}" if key in report.perplexity else "" for key in ("source", "output")]
        rows.append(("Perplexity", *values))
    text = _table(("", "source", "this checkpoint"), rows)
    if report.perplexity:
        text += f"\nPerplexity was measured so: {_text(report.perplexity_protocol) or 'no protocol was recorded'}.\n"
    layers = converted(report)
    if not layers:
        return text
    found = {_code(kind): errors(members) for kind, members in by_kind(layers).items()} | {"all kinds": errors(layers)}
    lines = [
        (kind, f"{part.count:,}", percent(part.mean), percent(part.worst.error), _code(part.worst.name))
        for kind, part in found.items()
        if part.worst
    ]
    return (
        f"{text}\nRelative weight error, the Frobenius norm of (W - W') over that of W, against the source weights. "
        "Means are over linears; kept linears are not counted.\n\n"
        + _table(("kind", "linears", "mean error", "worst error", "worst linear"), lines)
    )


def _bytes(count: int) -> str:
    return f"{size(count)} ({count:,} bytes)"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """First column to the left, figures to the right."""
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _check(report: Report) -> str:
    if report.verified:
        tensors = "tensor" if report.verified == 1 else "tensors"
        verdict = f"After writing, {report.verified:,} {tensors} were read back and checked."
    else:
        verdict = "**Not verified**: the written files were not read back after the conversion."
    return f"{verdict} To check a copy:\n\n```bash\nslideconvert verify CKPT\n```\n"


def _limits(report: Report) -> str:
    items = [
        "slideconvert prunes and quantizes without retraining. Test the model on your own task before you rely on it."
    ]
    for note, names in notes(report):
        shown = ", ".join(_code(name) for name in names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
        items.append(_text(note) + (f": {shown}{more}" if names else ""))
    items.append("What limits the source model, its license included, limits this one too.")
    return "".join(f"- {item}\n" for item in items)
