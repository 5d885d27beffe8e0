"""What vLLM makes of command lines, one after another. A script for vLLM's own environment.

    python vllm_configs.py TASK OUT

TASK: a JSON object: lines, each a list of words; load: whether to start the engine, in this process, or only to
configure it. OUT: a folder; outcome.json appears in it, a list of what became of each line: the quantization method
and backend, or the error; and whether our heavy half was imported by then.
"""

import json
import os
import sys
from pathlib import Path

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main(task: str, out: str) -> None:
    os.environ.update(SETTINGS)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    asked, told = json.loads(Path(task).read_text()), []
    for words in asked["lines"]:
        try:
            args = EngineArgs.from_cli_args(parser.parse_args(words))
            config = LLMEngine.from_engine_args(args).vllm_config if asked["load"] else args.create_engine_config()
            settings = getattr(config.quant_config, "settings", None)
            backend = settings.backend if settings else None
            found = {"quantization": config.model_config.quantization, "backend": backend}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        told.append({**found, "imported": "slideconvert.runtime.vllm_quantization" in sys.modules})
    (Path(out) / "outcome.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
