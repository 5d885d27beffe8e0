"""What modules of transformers compute, told by the source of their forward.

This file is copied into every checkpoint, beside modeling_slidesparse.py.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from torch import nn

NORM = """
def forward(self, hidden_states):
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
    return self.weight * hidden_states.to(input_dtype)
"""
LAYER = """
def forward(
    self, hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **kwargs
):
    residual = hidden_states
    hidden_states = self.input_layernorm(hidden_states)
    hidden_states, _ = self.self_attn(
        hidden_states=hidden_states,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=past_key_values,
        use_cache=use_cache,
        position_embeddings=position_embeddings,
        **kwargs,
    )
    hidden_states = residual + hidden_states
    residual = hidden_states
    hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = self.mlp(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states
"""
MLP = """
def forward(self, x):
    down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    return down_proj
"""
NORMED_MLP = """
def forward(self, x):
    down_proj = self.down_proj(self.ffn_sub_norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))
    return down_proj
"""
LAST_NORM = [
    "attn_output = self.attn_sub_norm(attn_output)",
    "attn_output = self.o_proj(attn_output)",
]
"""Statements of an attention that follow each other."""


def written(module: nn.Module | None, pattern: str) -> bool:
    """Whether the forward of a module is the pattern, annotations, defaults and comments apart."""
    found = None if module is None or "forward" in vars(module) else function_of(type(module))
    [wanted] = ast.parse(pattern).body
    return found is not None and isinstance(wanted, ast.FunctionDef) and _text(found) == _text(wanted)


def _text(function: ast.FunctionDef) -> list[str]:
    return [*(one.arg for one in function.args.args), *map(ast.unparse, _body(function))]


def function_of(kind: Any) -> ast.FunctionDef | None:
    """The forward of a class, parsed; None without its source."""
    return _parsed(kind.forward)


@cache
def _parsed(function: Any) -> ast.FunctionDef | None:
    try:
        [found] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError):
        return None
    return found if isinstance(found, ast.FunctionDef) else None


def body_of(kind: type) -> list[ast.stmt]:
    """The statements of a class's forward; none without its source."""
    found = function_of(kind)
    return [] if found is None else _body(found)


def _body(function: ast.FunctionDef) -> list[ast.stmt]:
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def readers_of(kind: type) -> tuple[str, ...]:
    """The submodules to which a class's forward passes its input `hidden_states`; none if it uses more of it than its
    shape."""
    function = function_of(kind)
    if function is None:
        return ()
    uses, names = 0, []
    for node in ast.walk(function):
        uses += isinstance(node, ast.Name) and node.id == "hidden_states"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "hidden_states.shape":
            uses -= 1
        if isinstance(node, ast.Call) and [ast.unparse(one) for one in node.args] == ["hidden_states"]:
            owner, _, name = ast.unparse(node.func).rpartition(".")
            if owner == "self" and not node.keywords:
                names.append(name)
    return tuple(names) if uses == len(names) else ()


def holds(kind: type, lines: list[str]) -> bool:
    """Whether the forward of a class has these statements, one after the other."""
    own = [ast.unparse(line) for line in body_of(kind)]
    return lines in (own[first : first + len(lines)] for first in range(len(own)))
