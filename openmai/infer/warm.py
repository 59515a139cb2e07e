"""Getting ready: the first requests shall not wait for what is done once."""

from __future__ import annotations

from openmai.base.progress import say
from openmai.cpu.compile import MANY
from openmai.infer.config import EngineConfig, Sampling
from openmai.infer.engine import Engine
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer


def warm_up(model: Transformer, tokenizer: Tokenizer) -> None:
    """Answer prompts before anybody asks: what is compiled when it is first used (openmai/cpu) is read from disk then, or compiled.

    They make passes of each kind: of few tokens, of a prompt, and of both, once with little to read and once with much.
    """
    say("warming up; takes half a minute when openmai is new on this machine")
    length = min(model.config.context, 32 + 2 * MANY // model.config.width)  # enough for steps that several threads compute
    prompt, sampling = [0] * max(1, length - 8), Sampling(max_tokens=4, temperature=0, ignore_ends=True)
    with Engine(model, tokenizer, EngineConfig(max_length=length, rows=2, prefix_cache=False)) as engine:
        engine.generate([[0], prompt], sampling)
        running = engine.submit(prompt, sampling)
        next(iter(running))
        engine.generate([prompt], sampling)
        running.result()
