"""The first example of the README gains speed, by `plan`, on the GPU that it names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from slideconvert.allocate.gpus import BUNDLED
from tests.conftest import Cli
from tests.helpers.model_configs import PROMISED

README = Path(__file__).parents[2] / "README.md"


def test_the_first_example_is_faster_than_dense_on_the_gpu_that_it_names(cli: Cli, tmp_path: Path) -> None:
    """Its comment says how many times as fast for prompts and for a token, as plan has it."""
    block = README.read_text().partition("```bash\n")[2].partition("```")[0]
    lines = [line for line in block.splitlines() if line.startswith("slideconvert convert ")]
    words, comment = lines[0].partition("#")[0], lines[0].partition("#")[2]
    gpu = next(word for word in re.findall(r"\w+", comment.lower()) if word in BUNDLED)
    _, _, model, out, *options = shlex.split(words)
    config = next(one.config for one in PROMISED if one.hub_id == model)
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = re.findall(r"(\d\.\d+)×", comment)
    for tokens, figure in zip((4096, 1), said, strict=True):
        more = ("--gpu", gpu, "--tokens", tokens, "--json")
        expected = json.loads(cli("plan", tmp_path, tmp_path / out, *options, *more).out)["expected"]
        assert expected["speedup"] >= 1 and f"{expected['speedup']:.2f}" == figure, (tokens, expected)
