"""Train the bundled demo model: a one-million-parameter Llama that has read the Python standard library.

The examples and the tests need a model that is small enough to ship and to convert on a laptop, and
whose perplexity still means something: pruning random weights costs nothing, pruning trained ones does.
The text comes with every Python installation, so that training needs no download.

Modules whose path hashes into the held-out share are never trained on, under any Python version.
``--write-text`` writes ``demo_text/`` anew: ``calibration.jsonl`` from the training modules and
``evaluation.jsonl`` from the held-out ones. Seeds are fixed; devices and library versions still matter.
"""

import argparse
import hashlib
import json
import logging
import math
import sysconfig
import time
import tokenize
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"  # token ids 0, 1 and 2, in this order
BEGIN_ID, END_ID, PAD_ID = range(3)
VOCABULARY_SIZE = 2048
LENGTH = 512

# Tests and vendored tools are not library code, tables are not prose, and the files that the build
# generates (_sysconfigdata*, config-*) name paths of the machine that built Python.
SKIPPED_PARTS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
SKIPPED_PARTS |= {"encodings", "pydoc_data", "stringprep.py", "entities.py"}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
HELD_OUT_ONE_IN = 20

# The two files hold whole modules of middling size, so that none dominates.
DOCUMENT_BYTES = range(1_000, 50_000)
CALIBRATION_FILE = Path(__file__).parent / "demo_text" / "calibration.jsonl"
EVALUATION_FILE = CALIBRATION_FILE.with_name("evaluation.jsonl")
CALIBRATION_BYTES = 400_000
EVALUATION_BYTES = 200_000

BATCH_SIZE = 64
PEAK_LEARNING_RATE = 6e-3
WARMUP_STEPS = 300
# The text passes by some hundred times: without strong decay and dropout the held-out text suffers.
WEIGHT_DECAY = 2.0
DROPOUT = 0.1
BETAS = (0.9, 0.95)
GRADIENT_NORM = 1.0
REPORT_EVERY = 500

log = logging.getLogger("train_demo_model")


def library_modules(root: Path) -> dict[str, str]:
    """Return the source of every library module under ``root``, by relative path, in path order."""
    sources: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_PARTS.intersection(relative.parts) or relative.parts[0].startswith(SKIPPED_PREFIXES):
            continue
        with tokenize.open(path) as source:  # honours the file's own encoding declaration
            sources[relative.as_posix()] = source.read()
    return {path: text for path, text in sources.items() if text.strip()}


def path_hash(path: str) -> int:
    """Hash a module's path: a shuffle and a split that do not change between runs or Python versions."""
    return int(hashlib.sha256(path.encode()).hexdigest(), 16)


def split_modules(modules: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split modules into the ones to train on and the ones held out."""
    held_out = {path: text for path, text in modules.items() if path_hash(path) % HELD_OUT_ONE_IN == 0}
    training = {path: text for path, text in modules.items() if path not in held_out}
    return training, held_out


def sample_documents(modules: dict[str, str], budget: int) -> list[str]:
    """Pick whole modules of middling size, in hash order, up to ``budget`` bytes."""
    documents, used = [], 0
    for path in sorted(modules, key=path_hash):
        size = len(modules[path].encode())
        if size in DOCUMENT_BYTES and used + size <= budget:
            documents.append(modules[path])
            used += size
    return documents


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """Write one JSON object with a ``text`` field per document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    path.write_text("".join(lines), encoding="utf-8")


def read_documents(path: Path) -> list[str]:
    """Return the texts that ``write_documents`` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer; it can spell any text and decodes to exactly the same text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> torch.Tensor:
    """Concatenate the documents' tokens, each document between the begin and the end token."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return torch.tensor([token for e in encodings for token in (BEGIN_ID, *e.ids, END_ID)])


def cut_sequences(stream: torch.Tensor) -> torch.Tensor:
    """Cut a stream into whole sequences, dropping the remainder."""
    return stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)


def build_model() -> LlamaForCausalLM:
    """Create the untrained model: Llama's shape at a size that fits in two megabytes."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config)


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at ``step``: a linear warmup, then a cosine to zero."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))
    return min((step + 1) / warmup, cosine)


def add_dropout(model: LlamaForCausalLM) -> None:
    """Drop part of what is added to the residual stream while training; Llama itself has no dropout."""
    outputs = [m for name, m in model.named_modules() if name.endswith(("embed_tokens", "o_proj", "down_proj"))]
    for module in outputs:
        module.register_forward_hook(lambda m, _, output: F.dropout(output, DROPOUT, m.training))


def train(model: LlamaForCausalLM, stream: torch.Tensor, steps: int, seed: int) -> None:
    """Train ``model`` in place on sequences that start at random places of ``stream``."""
    device, on_gpu = model.device, model.device.type == "cuda"
    # The generator lives on the CPU so that every device sees the same batches.
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(LENGTH, device=device)
    matrices = {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY}
    scales = {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}  # the norms'
    optimizer = torch.optim.AdamW([matrices, scales], lr=PEAK_LEARNING_RATE, betas=BETAS, fused=on_gpu)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    # At this size a GPU waits for Python more than it computes; on a CPU compiling is not worth its wait.
    forward = torch.compile(model) if on_gpu else model
    model.train()
    start = time.monotonic()
    for step in range(1, steps + 1):
        starts = torch.randint(len(stream) - LENGTH + 1, (BATCH_SIZE, 1), generator=generator)
        batch = stream[starts.to(device) + offsets]
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = forward(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % REPORT_EVERY == 0 or step == steps:
            log.info("step %d/%d  loss %.3f  %.0f s", step, steps, loss.item(), time.monotonic() - start)


@torch.inference_mode()
def perplexity(model: LlamaForCausalLM, sequences: torch.Tensor) -> float:
    """Return exp of the mean next-token cross-entropy inside the sequences, which are equally long."""
    model.eval()
    losses = [model(input_ids=w, labels=w).loss.item() for w in sequences.to(model.device).split(1)]
    return math.exp(sum(losses) / len(losses))


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the BF16 checkpoint and its tokenizer."""
    model.to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,  # decoding must give the exact text back
    ).save_pretrained(folder)


def main() -> None:
    """Train, save, and report the perplexity of what was saved."""
    parser = argparse.ArgumentParser(description="Train the bundled demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--write-text", action="store_true", help="also write demo_text/ anew")
    parser.add_argument("--steps", type=int, default=10_000, help="optimizer steps (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the batches")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = automatic if arguments.device == "auto" else arguments.device
    training, held_out = split_modules(library_modules(Path(sysconfig.get_path("stdlib"))))
    if arguments.write_text:
        write_documents(CALIBRATION_FILE, sample_documents(training, CALIBRATION_BYTES))
        write_documents(EVALUATION_FILE, sample_documents(held_out, EVALUATION_BYTES))

    tokenizer = train_tokenizer(training.values())
    stream = token_stream(tokenizer, training.values())
    log.info("%d training modules, %d tokens; %d held out", len(training), len(stream), len(held_out))
    torch.manual_seed(arguments.seed)
    model = build_model().to(device)
    add_dropout(model)
    log.info("%d parameters, on %s", model.num_parameters(), device)
    train(model, stream.to(device), arguments.steps, arguments.seed)
    save(model, tokenizer, arguments.out)

    saved = AutoModelForCausalLM.from_pretrained(arguments.out, dtype=torch.float32).to(device)
    sequences = cut_sequences(token_stream(tokenizer, read_documents(EVALUATION_FILE)))
    log.info("perplexity %.3f over %d held-out sequences", perplexity(saved, sequences), len(sequences))


if __name__ == "__main__":
    main()
