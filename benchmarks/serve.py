"""python benchmarks/serve.py --work DIR [--threads 2] [--clients 1 4 16] [--prompt 128] [--tokens 64] [--only NAME ...] [--load 1000]

Our server beside llama.cpp's (xllamacpp) and `generate` of transformers: the same model of about 100M parameters and random weights, the
same threads, the same prompts of token ids, greedy, a fixed number of tokens. Each contender is a process of its own, so its peak memory
is known. Servers are asked over HTTP and stream; a client asks again as soon as it has its answer, for as many rounds as `--rounds` says.

fp32 beside fp32, int8 beside Q8_0. For one client the last column says how much of what memory bandwidth allows its tokens get once the
first is there: bytes of all matrices and of keys and values, by the time between two tokens, divided by the speed of sums over a large
array, which is measured before and after each answer, for on rented machines it changes from second to second. Then what a common prefix
and guesses bring (`--only gains`: that alone), and with --load N a storm: N requests of 64 clients of which a third leave in the middle,
after which no block may be held and memory must be flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx

SHAPE = {"num_layers": 12, "width": 768, "num_heads": 12, "num_kv_heads": 4, "ffn_width": 2048, "context": 1024}
VOCABULARY = 16384
EVENT = b"data: {"  # each token's
HEAD = SHAPE["width"] // SHAPE["num_heads"]
MATRICES = SHAPE["width"] * (
    SHAPE["num_layers"] * (2 * SHAPE["width"] + 2 * SHAPE["num_kv_heads"] * HEAD + 3 * SHAPE["ffn_width"]) + VOCABULARY
)  # numbers that a token is multiplied by
CACHED = 2 * SHAPE["num_layers"] * SHAPE["num_kv_heads"] * HEAD  # numbers that an earlier token left in the cache


def make(work: Path) -> None:
    """Write tokenizer, checkpoint, Hugging Face folder and GGUF files, unless they are there."""
    import torch

    from openmai.base.artifact import create
    from openmai.base.config import Config
    from openmai.cli import main
    from openmai.model.checkpoint import KIND, save_model
    from openmai.model.config import ModelConfig
    from openmai.model.transformer import Transformer, num_parameters
    from openmai.tokenizer.train import learn, save

    if not (work / "model/manifest.json").exists():
        (work / "tokenizer").mkdir(parents=True, exist_ok=True)
        texts = [path.read_text(encoding="utf-8") for path in sorted(Path("examples").rglob("*.md"))]
        save(learn(iter(texts), 4096), work / "tokenizer")
        model = Transformer(ModelConfig(vocab_size=VOCABULARY, **SHAPE)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.04, generator=generator)
        print(f"{num_parameters(model) / 1e6:.1f}M parameters")
        with create(work / "model", kind=KIND, version=1, config=Config()) as making:
            save_model(model, work / "model", work / "tokenizer")
            making.finish(metrics={})
    for arguments in (
        ["hf", "--checkpoint", f"{work}/model", "--out", f"{work}/hf"],
        *(["gguf", "--checkpoint", f"{work}/model", "--out", f"{work}/gguf-{kind}", "--quantize", kind] for kind in ("f32", "q8_0")),
    ):
        assert main(["export", *arguments]) == 0


# The contenders, each in a process of its own


def serve_llama(file: str, rows: int, threads: int, length: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.n_batch, params.n_ubatch = rows * length, rows, 2048, 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.warmup, params.port = True, 0
    server = xllamacpp.Server(params)
    print(f"at {server.listening_address}", flush=True)
    signal.pause()


def generate_transformers(folder: str, threads: int, prompts: list[list[int]], tokens: int) -> None:
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for batch in (1, 16):
        ids = torch.tensor((prompts * 16)[:batch])
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        model.generate(ids[:1, :8], **(settings | {"max_new_tokens": 2, "min_new_tokens": 2}))
        began, used = time.monotonic(), time.process_time()
        model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        made = {
            "batch": batch,
            "rate": batch * tokens / (time.monotonic() - began),
            "cpu_ms": (time.process_time() - used) / batch / tokens * 1e3,
        }
        print(json.dumps(made), flush=True)


@dataclass
class Contender:
    name: str
    command: list[str]
    bits: float = 32
    "of memory that a number of the matrices takes, with its share of scales"
    model: str = "bench"
    extra: dict[str, Any] = field(default_factory=lambda: {"ignore_eos": True})


def contenders(work: Path, threads: int, rows: int) -> list[Contender]:
    ours = [
        sys.executable,
        "-m",
        "openmai",
        "serve",
        f"{work}/model",
        "--port",
        "0",
        "--name",
        "bench",
        f"--threads={threads}",
        f"--rows={rows}",
    ]
    length = SHAPE["context"]

    def llama(kind: str) -> list[str]:
        return [sys.executable, __file__, "--llama", f"{work}/gguf-{kind}/model-{kind}.gguf", str(rows), str(threads), str(length)]

    return [
        Contender("openmai fp32", ours),
        Contender("llama.cpp fp32", llama("f32")),
        Contender("openmai fp16", [*ours, "--weights=fp16"], 16),
        Contender("openmai int8", [*ours, "--weights=int8"], 8),
        Contender("llama.cpp Q8_0", llama("q8_0"), 8.5),
        Contender("openmai int4", [*ours, "--weights=int4"], 5),
    ]


@contextmanager
def running(contender: Contender, threads: int) -> Iterator[tuple[str, int]]:
    """Start a server; yields its address and process id."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(contender.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    address = ""
    for line in process.stdout:
        if found := re.search(r"http://[\w.]+:\d+", line):  # llama.cpp's log may run on in the same line
            address = found[0]
            break
    assert address, f"{contender.name} did not start"
    drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    try:
        yield address, process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        drain.wait(5)


def memory(pid: int, which: str = "VmHWM") -> float:
    """Return peak (or present, VmRSS) memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(which)) / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The clients


def ask(address: str, contender: Contender, prompt: list[int], tokens: int) -> socket.socket:
    """Ask for one streamed answer."""
    body = {
        "model": contender.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "logit_bias": {},
        **contender.extra,
    }
    if "llama" in contender.name:
        body["cache_prompt"] = False
        del body["logit_bias"]
    host, port = address.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    connection = socket.create_connection((host, int(port)), timeout=600)
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + content)
    return connection


@dataclass
class _Client:
    left: list[list[int]]
    "prompts that have not been sent"
    last: float = 0
    "when the last token came, or the prompt was sent"
    waits_for: str = "first"
    tail: bytes = b""
    "the end of what was read, in which an event may have begun"


def measure(contender: Contender, address: str, clients: int, rounds: int, tokens: int, prompts: list[list[int]]) -> dict[str, list[float]]:
    """Let clients ask, each again as soon as it has its answer; they are little more than sockets, for what they take of two cores the
    servers do not have. Returns the seconds to the first tokens, and those between tokens."""
    times: dict[str, list[float]] = {"first": [], "between": []}

    def begin(client: _Client, connections: selectors.BaseSelector) -> None:
        client.last = time.monotonic()
        connections.register(ask(address, contender, client.left.pop(0), tokens), selectors.EVENT_READ, client)

    with selectors.DefaultSelector() as connections:
        for number in range(clients):
            begin(_Client([prompts[(number * rounds + turn) % len(prompts)] for turn in range(rounds)]), connections)
        while connections.get_map():
            for key, _ in connections.select():
                client: _Client = key.data
                came, now = key.fileobj.recv(1 << 16), time.monotonic()  # type: ignore[union-attr]
                assert client.tail or came.startswith(b"HTTP/1.1 200 "), came
                read = client.tail + came
                for _ in range(read.count(EVENT)):
                    times[client.waits_for].append(now - client.last)
                    client.waits_for, client.last = "between", now
                client.tail = read[1 - len(EVENT) :]
                if not came:
                    connections.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    if client.left:
                        begin(_Client(client.left), connections)
    return times


def measure_alone(
    contender: Contender, address: str, tokens: int, prompts: list[list[int]], threads: int
) -> tuple[dict[str, list[float]], float, list[float]]:
    """Ask for one answer after the other; returns all times, the seconds that answers took, and of each its share of memory's speed."""
    times: dict[str, list[float]] = {"first": [], "between": []}
    seconds, shares = 0.0, []
    before = bandwidth(threads)
    for prompt in prompts:
        began = time.monotonic()
        here = measure(contender, address, 1, 1, tokens, [prompt])
        seconds += time.monotonic() - began
        after = bandwidth(threads)
        read = MATRICES * contender.bits / 8 + CACHED * 4 * (len(prompt) + tokens / 2)
        shares.append(read / statistics.mean(here["between"]) / ((before + after) / 2))
        before = after
        for kind, found in here.items():
            times[kind] += found
    return times, seconds, shares


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def make_prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(300, 3000) for _ in range(length)] for _ in range(count)]


def compare(options: argparse.Namespace) -> None:
    print("\n| | clients | tokens/s | CPU ms/token | TTFT p50 | p99 ms | between p50 | p99 ms | peak MB | of memory |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for contender in contenders(options.work, options.threads, max(options.clients)):
        if options.only and contender.name not in options.only:
            continue
        with running(contender, options.threads) as (address, pid):
            measure(contender, address, 1, 1, 4, make_prompts(1, options.prompt, 9))
            for clients in options.clients:
                rounds = max(1, options.rounds * 4 // clients if clients < 4 else options.rounds)
                prompts = make_prompts(clients * rounds, options.prompt, clients)  # none that an earlier run has left in a cache
                used, share = cpu_seconds(pid), ""
                if clients == 1:
                    found, seconds, shares = measure_alone(contender, address, options.tokens, prompts, options.threads)
                    share = f"{100 * statistics.median(shares):.0f} %"
                else:
                    began = time.monotonic()
                    found = measure(contender, address, clients, rounds, options.tokens, prompts)
                    seconds = time.monotonic() - began
                made = clients * rounds * options.tokens
                cells = [f"{made / seconds:.1f}", f"{1e3 * (cpu_seconds(pid) - used) / made:.1f}"]
                cells += [f"{quantile(found[kind], share):.0f}" for kind in ("first", "between") for share in (0.5, 0.99)]
                print(f"| {contender.name} | {clients} | {' | '.join(cells)} | {memory(pid):.0f} | {share} |", flush=True)
    if not options.only or "transformers" in options.only:
        command = [
            sys.executable,
            __file__,
            "--transformers",
            f"{options.work}/hf",
            str(options.threads),
            str(options.prompt),
            str(options.tokens),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        for line in subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                print(f"| transformers generate | batch {row['batch']} | {row['rate']:.1f} | {row['cpu_ms']:.1f} | | | | | | |", flush=True)


def gains(options: argparse.Namespace) -> None:
    """What the prefix cache and guesses save. The model's weights are random, so only what a grammar asks for repeats itself."""
    base = contenders(options.work, options.threads, 16)[0]
    shared = make_prompts(1, 600, 5)[0]
    print("\n| | requests | CPU ms each | TTFT p50 ms | tokens/s |\n|---|--:|--:|--:|--:|")
    lines = {"structured_outputs": {"regex": r'(\{"name": "[a-z]{4}", "price": [0-9]{2}, "in stock": (true|false)\},\n){50}'}}
    for name, extra, prompts, tokens, asked in (
        ("600 tokens in common, no prefix cache", ["--prefix_cache=false"], [shared + one for one in make_prompts(8, 20)], 8, {}),
        ("600 tokens in common, prefix cache", [], [shared + one for one in make_prompts(8, 20)], 8, {}),
        ("lines of JSON of one shape, no guesses", [], make_prompts(8, 40), 128, lines),
        ("lines of JSON of one shape, ngram", ["--speculate=ngram"], make_prompts(8, 40), 128, lines),
    ):
        contender = Contender(name, [*base.command, *extra], extra={"ignore_eos": True, **asked})
        with running(contender, options.threads) as (address, pid):
            measure(contender, address, 1, 1, 4, [prompts[0]])
            began, used = time.monotonic(), cpu_seconds(pid)
            found = measure(contender, address, 1, len(prompts), tokens, prompts)
            cpu = 1e3 * (cpu_seconds(pid) - used) / len(prompts)
            rate = len(prompts) * tokens / (time.monotonic() - began)
            print(f"| {name} | {len(prompts)} | {cpu:.0f} | {quantile(found['first'], 0.5):.0f} | {rate:.1f} |", flush=True)


def storm(options: argparse.Namespace) -> None:
    """Many requests, many clients, a third of whom leave; then SIGTERM in the middle of the next ones."""
    base = contenders(options.work, options.threads, 16)[3]
    base.command += ["--max_length=256"]
    rng = random.Random(1)
    with running(base, options.threads) as (address, pid):
        kept, left, failed, sizes = 0, 0, [], []

        async def client(number: int, queue: Iterator[int], http: httpx.AsyncClient) -> None:
            nonlocal kept, left
            for place in queue:
                body = {
                    "model": "bench",
                    "prompt": make_prompts(1, rng.randrange(1, 60), place)[0],
                    "max_tokens": rng.randrange(1, 24),
                    "stream": True,
                }
                leaves = rng.random() < 1 / 3
                try:
                    async with http.stream("POST", "/v1/completions", json=body) as response:
                        lines = 0
                        done = False
                        async for line in response.aiter_lines():
                            lines += 1
                            done = done or line == "data: [DONE]"
                            if leaves and lines > 2:
                                left += 1
                                break
                        else:
                            kept += done
                            if not done:
                                failed.append(response.status_code)
                except httpx.HTTPError as error:
                    failed.append(repr(error))
                if place % 50 == 0:
                    sizes.append((place, round(memory(pid, "VmRSS"))))

        async def run(count: int) -> None:
            queue = iter(range(count))
            async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=64)) as http:
                await asyncio.gather(*(client(number, queue, http) for number in range(64)))

        began = time.monotonic()
        asyncio.run(run(options.load))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (httpx.get(f"{address}/health").json()["running"] or sum(held(address))):
            time.sleep(0.2)
        spent = time.monotonic() - began
        print(f"\nstorm: {options.load} requests, 64 clients, {spent:.0f} s: {kept} answered, {left} left, {len(failed)} failed")
        print(f"blocks still held: {held(address)[0]:.0f}; memory MB after n requests: {sizes[:: max(1, len(sizes) // 8)]}")
    print(f"SIGTERM: {asyncio.run(terminate(base, options.threads))}")


def held(address: str) -> list[float]:
    text = httpx.get(f"{address}/metrics").text
    return [float(line.split()[-1]) for line in text.splitlines() if line.startswith("openmai_cache_used_blocks ")]


async def terminate(contender: Contender, threads: int) -> str:
    """Send SIGTERM while 32 requests run; count the answers that come whole."""
    with running(contender, threads) as (address, pid):
        async with httpx.AsyncClient(base_url=address, timeout=600) as http:
            body = {"model": "bench", "max_tokens": 20, "ignore_eos": True}
            asking = [
                asyncio.ensure_future(http.post("/v1/completions", json=body | {"prompt": prompt})) for prompt in make_prompts(32, 20)
            ]
            health = {"running": 0, "waiting": 0}
            while health["running"] + health["waiting"] < 32:
                await asyncio.sleep(0.02)
                health = (await http.get("/health")).json()
            os.kill(pid, signal.SIGTERM)
            answers = await asyncio.gather(*asking, return_exceptions=True)
    whole = sum(
        isinstance(one, httpx.Response) and one.status_code == 200 and one.json()["usage"]["completion_tokens"] == 20 for one in answers
    )
    return f"{whole} of 32 accepted requests answered"


def bandwidth(threads: int) -> float:
    """Measure bytes per second of sums over an array far larger than the caches, in large pages."""
    import torch

    torch.set_num_threads(threads)
    array = _large_array()
    array.sum()
    began = time.monotonic()
    for _ in range(5):
        array.sum()
    seconds = time.monotonic() - began
    time.sleep(0.1)  # the threads of the sum go to sleep
    return 5 * array.nbytes / seconds


@cache
def _large_array() -> Any:
    import numpy as np
    import torch

    from openmai.cpu.memory import Arena

    array = torch.from_numpy(Arena().take((100_000_000,), np.float32))
    return array.fill_(1)


def main() -> None:
    if sys.argv[1:2] == ["--llama"]:
        return serve_llama(sys.argv[2], *(int(one) for one in sys.argv[3:]))
    if sys.argv[1:2] == ["--transformers"]:
        return generate_transformers(sys.argv[2], int(sys.argv[3]), make_prompts(64, int(sys.argv[4])), int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--no-compare", action="store_true")
    options = parser.parse_args()
    make(options.work)
    speed = bandwidth(options.threads)
    print(f"{platform.machine()}, {options.threads} threads, load {os.getloadavg()[0]:.1f}; memory {speed / 1e9:.1f} GB/s")
    print(f"one client can have {speed / MATRICES / 4:.0f} tokens/s in fp32, {speed / MATRICES:.0f} in int8, by the matrices alone")
    if not options.no_compare:
        compare(options)
        if not options.only or "gains" in options.only:
            gains(options)
    if options.load:
        storm(options)
    return None


if __name__ == "__main__":
    main()
