"""The tokenizer in a GGUF file, as tokenizer.json and tokenizer_config.json.

llama.cpp names the rule that splits text into words (tokenizer.ggml.pre) but not its regular expression, so the rules
of the supported families are here. transformers reads the same fields, but splits by GPT-2's rule whatever the name
says: SmolLM and Llama 3 would get other tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError, one_line
from ..models.load import foreign_error
from .container import GgufFile

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens (tokenizer.ggml.token_type) that text is searched for before it is split."""
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = (
    CONTRACTIONS + r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
"""Rules of the same form that differ in how many digits make a word."""
BY_GPT2 = ("default", "gpt-2", "smollm")
"""Rules that split words as GPT-2 does; smollm takes digits one by one before that."""


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer of a GGUF file to a folder. InputError for a file without one, or of an unknown kind."""
    try:
        _tokenizer(file).save_pretrained(folder)
    except (InputError, OSError):
        raise
    except Exception as error:  # of transformers and tokenizers, which name no kinds
        hint = (
            "the file is damaged, or its tokenizer of a kind that is unknown: use the safetensors version of the model"
        )
        raise foreign_error(file.path, "no usable tokenizer", error, hint=hint) from error


def _tokenizer(file: GgufFile) -> Any:
    """The tokenizer as one of transformers."""
    from transformers import PreTrainedTokenizerFast

    model = file.field("tokenizer.ggml.model", str)
    tokens = file.field("tokenizer.ggml.tokens", list)
    if model == "gpt2":
        tokenizer = _byte_level(file, tokens)
    elif model == "llama":
        tokenizer = _sentence_pieces(file, tokens)
    else:
        raise _unknown(file, f"tokenizer '{one_line(model)[:40]}'", "llama and gpt2")
    types = file.fields.get("tokenizer.ggml.token_type", [])
    _add_tokens(tokenizer, tokens, types)
    named = {ours: _token(file, tokens, theirs) for ours, theirs in SPECIAL.items()}
    _add_begin_and_end(tokenizer, file, named)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token is not None},
    )
    if length := file.fields.get(f"{file.architecture}.context_length"):
        made.model_max_length = length
    template = file.fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        made.chat_template = template
    return made


def _unknown(file: GgufFile, what: str, known: str) -> InputError:
    return InputError(
        f"{file.path}: {what} is not read from GGUF",
        hint=f"known are {known}; use the safetensors version of the model",
    )


def _byte_level(file: GgufFile, tokens: list[str]) -> Any:
    """A byte-level BPE tokenizer, as GPT-2's."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    rule = file.fields.get("tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in file.field("tokenizer.ggml.merges", list)]
    by_number = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(by_number, merges, ignore_merges=rule == "llama-bpe"))
    if rule in DIGITS:
        words = Regex(WORDS.format(digits=DIGITS[rule]))
        split = [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    elif rule in BY_GPT2:
        first = [pre_tokenizers.Digits(individual_digits=True)] if rule == "smollm" else []
        split = [*first, pre_tokenizers.ByteLevel(False, use_regex=True)]
    else:
        known = ", ".join((*BY_GPT2, *DIGITS))
        raise _unknown(file, f"the rule '{one_line(str(rule))[:40]}' that splits text into words", known)
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(file: GgufFile, tokens: list[str]) -> Any:
    """A BPE tokenizer of SentencePiece, as that of Llama 2. GGUF has its scores, from which the merges follow."""
    from transformers.convert_slow_tokenizer import generate_merges
    from transformers.integrations.ggml import convert_gguf_tokenizer

    scores = file.field("tokenizer.ggml.scores", list)
    ranked = dict(zip(tokens, scores, strict=True))
    types = file.fields.get("tokenizer.ggml.token_type", [])
    outside = [token for token, kind in zip(tokens, types, strict=False) if kind in (CONTROL, USER_DEFINED)]
    merges = generate_merges({token: number for number, token in enumerate(tokens)}, ranked, outside)
    told = {
        "tokenizer_type": "llama",
        "tokens": tokens,
        "scores": scores,
        "merges": [" ".join(merge) for merge in merges],
        "token_type": types,
        "unk_token_id": file.fields.get("tokenizer.ggml.unknown_token_id"),
        "add_prefix_space": file.fields.get("tokenizer.ggml.add_space_prefix", True),
    }
    tokenizer, _ = convert_gguf_tokenizer("llama", told)
    return tokenizer


def _add_tokens(tokenizer: Any, tokens: list[str], types: list[int]) -> None:
    """Mark the tokens that are found before text is split: control tokens as special ones, others as text."""
    from tokenizers import AddedToken

    for token, kind in zip(tokens, types, strict=False):
        if kind == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])


def _token(file: GgufFile, tokens: list[str], word: str) -> str | None:
    """The token with a role; None if the file names none. InputError for a number that no token has."""
    number = file.fields.get(f"tokenizer.ggml.{word}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise InputError(
            f"{file.path}: tokenizer.ggml.{word}_token_id is {number} of {len(tokens)} tokens",
            hint="the file is damaged: download it again",
        )
    return tokens[number]


def _add_begin_and_end(tokenizer: Any, file: GgufFile, named: dict[str, str | None]) -> None:
    """Let the tokenizer put its begin and end tokens around a text, if the file says so."""
    from tokenizers import processors

    spm = file.fields.get("tokenizer.ggml.model") == "llama"
    wanted = {"bos": file.fields.get("tokenizer.ggml.add_bos_token", spm)}
    wanted["eos"] = file.fields.get("tokenizer.ggml.add_eos_token", False)
    begin, end = (named[f"{kind}_token"] if wanted[kind] else None for kind in ("bos", "eos"))
    around = [token for token in (begin, end) if token is not None]
    if around:
        single = [*([begin] if begin else []), "$A", *([end] if end else [])]
        pair = [*single, *(["$B:1"] if not begin else [f"{begin}:1", "$B:1"]), *([f"{end}:1"] if end else [])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token)) for token in around]
        )
