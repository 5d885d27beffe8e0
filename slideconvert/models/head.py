"""The head of a model, from the last hidden states to logits, a piece of the tokens at a time.

Logits of whole texts are the largest tensor of a small model with many words: 4,096 tokens of 49,152 words take 805 MB,
and a loss holds them several times over.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PIECE = 1 << 24
"""Most logits at once: 67 MB in float32."""


class Head:
    """Everything of a causal language model that comes after its last hidden states: the projection, and the scales and
    caps of its family, as transformers computes them. It shares the weights of the model.

    piece: tokens whose logits are in memory at once.
    """

    def __init__(self, model: Any) -> None:
        self._body = model.base_model
        given = {id(self._body): _Given(), **{id(part): part for part in model.children() if part is not self._body}}
        self._head = copy.deepcopy(model, given)
        self.piece = max(1, PIECE // int(model.config.vocab_size))

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [sequences, length] int64 -> the last hidden states [sequences, length, hidden]."""
        states: Tensor = self._body(input_ids=tokens, use_cache=False).last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [tokens, hidden] -> [tokens, vocabulary] float32."""
        logits: Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0].float()

    def losses(self, loss: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """loss(piece of each input) -> [tokens of the piece], of all pieces: [tokens].

        inputs: [tokens, …] each, cut alike. With gradients, the logits of a piece are computed again for its gradient.
        """
        # Pieces of nearly equal size: products with few rows take other kernels, which round differently.
        count = -(-len(inputs[0]) // self.piece)
        pieces = zip(*(tensor.tensor_split(count) for tensor in inputs), strict=True)
        if torch.is_grad_enabled():
            return torch.cat(
                [checkpoint(loss, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
            )
        return torch.cat([loss(*piece) for piece in pieces])


class _Given(nn.Module):
    """Replaces a model without its head: the hidden states are those it is given."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)
