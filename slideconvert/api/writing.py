"""Functions that run a checkpoint: generate, chat and load_model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..checkpoint.reader import Checkpoint
from ..errors import InputError
from ..evaluate.continuation import Chat, Sampling, TextWriter, Write
from ..hub.source import resolve
from ..models.load import load_model as load
from ..progress import Progress, silent
from .options import ChatOptions, GenerateOptions, ModelOptions, SamplingOptions
from .settings import choose_device

MAX_NEW_TOKENS, MAX_ANSWER_TOKENS = 32, 512


def generate(
    ckpt: str | Path,
    prompt: str,
    options: GenerateOptions = GenerateOptions(),
    *,
    write: Write | None = None,
    progress: Progress = silent,
) -> str:
    """The continuation of a prompt, without the prompt, or with chat=True the answer to it: on a GPU with our kernels,
    on a CPU in plain torch.

    Tokens are the most likely ones unless the options of sampling are given. write: is handed the text in pieces as
    well, as it is generated; it may have control characters. InputError for a prompt without tokens, a checkpoint that
    cannot be read, and chat=True without a chat template.

    >>> isinstance(slideconvert.generate(out, "the", GenerateOptions(max_new_tokens=2)), str)
    True
    """
    check_generate(options)
    return written(open_writer(ckpt, options, progress), prompt, options, write)


def chat(ckpt: str | Path, options: ChatOptions = ChatOptions(), *, progress: Progress = silent) -> Chat:
    """Begin a conversation with a checkpoint that has a chat template: say(words) of the result is an answer.

    InputError for a checkpoint that cannot be read or has no chat template, and for a number out of range.
    """
    sampling = sampling_of(options)
    most = options.max_new_tokens or MAX_ANSWER_TOKENS
    return Chat(open_writer(ckpt, options, progress), options.system, most, sampling)


def load_model(ckpt: str | Path, options: ModelOptions = ModelOptions(), *, progress: Progress = silent) -> nn.Module:
    """The checkpoint as a causal language model of transformers in eval mode, its linears on the fastest backend here.

    InputError if the checkpoint cannot be read or run on the device.

    >>> slideconvert.load_model(out).config.model_type
    'llama'
    """
    return load(
        _opened(ckpt, progress),
        activations=options.activations or "quantized",
        device=choose_device(options.device),
        backend="auto",
    )


def open_writer(ckpt: str | Path, options: ModelOptions, progress: Progress) -> TextWriter:
    """The checkpoint, ready to write."""
    return TextWriter(_opened(ckpt, progress), options.activations or "quantized", choose_device(options.device))


def _opened(ckpt: str | Path, progress: Progress) -> Checkpoint:
    return Checkpoint.open(resolve(str(ckpt), progress=progress).path)


def check_generate(options: GenerateOptions) -> None:
    """InputError for options without effect and numbers out of range."""
    if options.system is not None and not options.chat:
        raise InputError("--system belongs to --chat", hint="add --chat, or omit it")
    sampling_of(options)


def written(writer: TextWriter, prompt: str, options: GenerateOptions, write: Write | None) -> str:
    """What `generate` returns."""
    sampling = sampling_of(options)
    if not options.chat:
        return writer.continued(prompt, options.max_new_tokens or MAX_NEW_TOKENS, sampling, write)
    chat = Chat(writer, options.system, options.max_new_tokens or MAX_ANSWER_TOKENS, sampling)
    return chat.say(prompt, write)


def sampling_of(options: SamplingOptions) -> Sampling:
    """How tokens are drawn. InputError for options without effect and numbers out of range."""
    temperature, top_p = options.temperature, options.top_p
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise InputError(f"--temperature {temperature}", hint="a number from 0, such as 0.7")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"--top-p {top_p}", hint="a probability above 0, up to 1")
    if temperature is None:
        temperature = 0.0 if top_p is None and options.top_k is None else 1.0
    for one in options.given():
        if not temperature and one.name in ("top_p", "top_k", "seed"):
            raise InputError(
                f"{one.flag} has no effect: the most likely tokens are taken", hint="add --temperature 0.7, or omit it"
            )
    return Sampling(temperature, top_p, options.top_k, options.seed)
