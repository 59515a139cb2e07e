"""python benchmarks/model.py [--nanochat FOLDER] [--rounds 7] [--rows 8] [--compile] [--layers]

Training tokens per second on the CPU, dense (about 10M parameters) and as a mixture of experts, beside nanochat's model and the Llama of
transformers at the same shape and batch, and the share of this machine's measured fp32 matmul peak that each reaches.

FOLDER is a checkout of karpathy/nanochat (nothing of it is here). Its model at this shape has a feed-forward of 4 x width with squared
ReLU, the same number of elements as ours; it and transformers get the same ids. A step is forward, loss, backward and fused AdamW on all
weights. The contenders take turns in every round, so that what else the machine does meets them alike; the fastest step of each counts,
and the spread over rounds is given. FLOPs are counted by openmai's formula (6 x matrices + causal attention), for each model its own.
With --compile each runs once more under torch.compile.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openmai.model.config import ModelConfig
from openmai.model.count import count_parameters, flops_per_token
from openmai.model.loss import summed_nats
from openmai.model.transformer import Transformer
from openmai.train.loop import prepare_cpu

VOCABULARY, WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT = 4096, 384, 6, 6, 1024, 512
SHAPE = {"vocab_size": VOCABULARY, "num_layers": LAYERS, "width": WIDTH, "num_heads": HEADS, "ffn_width": HIDDEN, "context": CONTEXT}
DENSE = ModelConfig(**SHAPE)
EXPERTS = {"num_experts": 8, "num_active": 2, "expert_width": HIDDEN // 2}
MIXTURE = ModelConfig(**SHAPE, moe=EXPERTS)

Step = Callable[[Tensor, Tensor], Tensor]


def ours(config: ModelConfig, compiled: bool) -> tuple[nn.Module, Step]:
    """Our model as `train` runs it."""
    model = Transformer(config).train()
    model.initialize(0)
    if compiled:
        model.compile_blocks()

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        nats, _ = summed_nats(model, ids, targets)
        return nats / targets.numel() + model.take_penalty()

    return model, loss


def llama(config: ModelConfig, compiled: bool) -> tuple[nn.Module, Step]:
    """Llama, or Mixtral, of transformers at the same shape."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    from openmai.model.hf.family import choose

    family = choose(config)
    written = {key: value for key, value in family.write(config).items() if key not in ("architectures", "model_type", "rope_theta")}
    settings = getattr(transformers, family.hf_class.replace("ForCausalLM", "Config"))(**written)
    model = getattr(transformers, family.hf_class)(settings).train()
    run = torch.compile(model) if compiled else model

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        return run(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False).loss

    return model, loss


def nanochat(folder: Path, compiled: bool) -> tuple[nn.Module, Step]:
    """nanochat's model at the same depth, width and vocabulary, full windows as it advises for CPUs."""
    sys.path.insert(0, str(folder))
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    settings = GPTConfig(
        sequence_len=CONTEXT, vocab_size=VOCABULARY, n_layer=LAYERS, n_head=HEADS, n_kv_head=HEADS, n_embd=WIDTH, window_pattern="L"
    )
    model = GPT(settings).train()
    model.init_weights()
    run = torch.compile(model, dynamic=False) if compiled else model
    return model, lambda ids, targets: run(ids, targets)


def timed(model: nn.Module, loss: Step, rows: int) -> Callable[[], float]:
    """Return a function that does one step and returns its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(VOCABULARY, (rows, CONTEXT + 1), generator=generator)
    ids, targets = stream[:, :-1].contiguous(), stream[:, 1:].contiguous()

    def step() -> float:
        began = time.perf_counter()
        loss(ids, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    step()
    return step


def peak() -> float:
    """Return the fp32 matmul FLOP/s of this moment, the best of three 2048 x 2048 x 2048 products."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds)


def compare(title: str, contenders: dict[str, tuple[Callable[[], tuple[nn.Module, Step]], float]], rounds: int, rows: int) -> None:
    """Print tokens per second of each contender and the share of the peak."""
    steps: dict[str, Callable[[], float]] = {}
    for name, (build, _) in contenders.items():
        steps[name] = timed(*build(), rows)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = []
    for _ in range(rounds):
        peaks.append(peak())
        for name, step in steps.items():
            seconds[name].append(step())
    tokens = rows * CONTEXT
    first = min(next(iter(seconds.values())))
    print(f"\n{title}: {tokens:,} tokens a step, peak {max(peaks) / 1e9:,.0f} GFLOP/s (median {statistics.median(peaks) / 1e9:,.0f})")
    print(f"{'':34}{'tokens/s':>9}{'median':>9}{'ours is':>9}{'GFLOP/s':>9}{'of peak':>9}")
    for name, (_, flops) in contenders.items():
        best, middle = min(seconds[name]), statistics.median(seconds[name])
        rate = flops * tokens / best
        print(f"{name:34}{tokens / best:9,.0f}{tokens / middle:9,.0f}{best / first:8.2f}x{rate / 1e9:9,.0f}{rate / max(peaks):9.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    prepare_cpu(0)
    torch.set_float32_matmul_precision("highest")
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    dense, mixture = (flops_per_token(config, CONTEXT) for config in (DENSE, MIXTURE))
    sizes = [count_parameters(config) for config in (DENSE, MIXTURE)]
    print(f"dense {sizes[0].total:,} parameters; mixture {sizes[1].total:,}, {sizes[1].active:,} active")
    for compiled in [False, True] if arguments.compile else [False]:
        kind = ", compiled" if compiled else ""
        contenders: dict[str, Any] = {f"openmai{kind}": (lambda c=compiled: ours(DENSE, c), dense)}
        contenders[f"transformers, Llama{kind}"] = (lambda c=compiled: llama(DENSE, c), dense)
        if arguments.nanochat:
            contenders[f"nanochat{kind}"] = (lambda c=compiled: nanochat(arguments.nanochat, c), dense)
        compare(f"dense{kind}", contenders, arguments.rounds, arguments.rows)
        mixtures = {
            f"openmai{kind}": (lambda c=compiled: ours(MIXTURE, c), mixture),
            f"transformers, Mixtral{kind}": (lambda c=compiled: llama(MIXTURE, c), mixture),
        }
        compare(f"mixture of experts{kind}", mixtures, arguments.rounds, arguments.rows)


if __name__ == "__main__":
    main()
