"""Vectors of texts: the mean of the stream behind the last norm, of length one. A model that was not trained for it gives rough ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.cpu.compile import end_threads
from openmai.infer.request import ContextLengthError
from openmai.model.transformer import Transformer


@torch.inference_mode()
def embed(model: Transformer, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return a vector (D,) in fp32 for each prompt of token ids.

    Raises ContextLengthError for one that is too long, OpenmaiError for one that is empty or no tokens.
    """
    vectors = []
    for ids in prompts:
        if not ids or not 0 <= min(ids) <= max(ids) < model.config.vocab_size:
            raise OpenmaiError(f"input: give token ids between 0 and {model.config.vocab_size - 1}, at least one")
        if len(ids) > model.config.context:
            raise ContextLengthError(f"input: {len(ids)} tokens; the context holds {model.config.context}")
        x_1TD = model.stream(torch.tensor([list(ids)], device=model.embedding.weight.device))
        vectors.append(torch.nn.functional.normalize(model.norm(x_1TD)[0].float().mean(dim=0), dim=0).cpu())
    end_threads()  # a server's threads come and go, the engine's are to stay awake
    return vectors
