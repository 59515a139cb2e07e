"""python benchmarks/lm_eval_client.py --model runs/laptop --python PYTHON [--questions examples/questions/test] [--weights int8]

lm-evaluation-harness drives our server through `local-completions` (token ids, echo, logprobs), on multiple-choice questions and on whole
texts; for every document the log-likelihoods that it gets are compared with those computed in this process. Exits with status 1 if any
differs by more than 1e-4 or if the harness thinks differently about which token is the most probable.

PYTHON is the Python of an environment with `lm-eval[api]` (0.4.13 was tried) and `transformers`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from serve import Contender, running

from openmai.cli import main as openmai
from openmai.infer.load import find_checkpoint, load_assistant
from openmai.infer.score import score
from openmai.model.transformer import Transformer
from openmai.tokenizer.tokenizer import Tokenizer

BOUND = 1e-4
LETTERS = "ABCD"
TASKS = {
    "ours_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "ours_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{choices[answer]}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


def write_tasks(folder: Path, questions: Path) -> int:
    """Write what the harness needs to find its two tasks; return how many documents each has."""
    rows = []
    for path in sorted(questions.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += [{"question": row[0], "choices": row[1:5], "answer": LETTERS.index(row[5])} for row in csv.reader(file)]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, task in TASKS.items():
        facts = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"} | task
        (folder / f"{name}.yaml").write_text(json.dumps(facts), encoding="utf-8")  # JSON is YAML
    return len(rows)


def harness(python: Path, folder: Path, address: str, prefix: int) -> None:
    """Let lm-evaluation-harness run both tasks and write what it got for each document."""
    arguments = f"model=ours,base_url={address}/v1/completions,tokenizer={folder}/hf,tokenizer_backend=huggingface,tokenized_requests=True"
    command = [
        str(python),
        "-m",
        "lm_eval",
        "--model",
        "local-completions",
        "--model_args",
        f"{arguments},num_concurrent=4,max_length=512,custom_prefix_token_id={prefix}",
    ]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(folder), "--log_samples", "--output_path", f"{folder}/out"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": f"{folder}/cache",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    print(done.stdout[done.stdout.find("|") :].strip())


def in_process(model: Transformer, tokenizer: Tokenizer, context: str, continuation: str) -> tuple[float, bool]:
    """Return the log-likelihood of a continuation, split from its context as the harness does, and whether it is the greedy one."""
    moved = len(context) - len(context.rstrip())
    if moved:
        context, continuation = context[:-moved], context[-moved:] + continuation
    whole = tokenizer.encode(context + continuation)
    start = len(tokenizer.encode(context)) if context else 1
    ids = whole if context else [tokenizer.end_of_text, *whole]  # whole texts follow the end of another
    found = score(model, [ids], top=1)[0]
    greedy = bool((found.top_ids_TK[start - 1 :, 0].tolist()) == ids[start:])
    return found.logprobs_T[start - 1 :].double().sum().item(), greedy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--questions", type=Path, default=Path("examples/questions/test"))
    parser.add_argument("--weights", default="", help="as of `openmai serve`; rounded weights will differ by more than 1e-4")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = write_tasks(folder, options.questions)
        checkpoint = find_checkpoint(options.model)
        if openmai(["export", "hf", "--checkpoint", str(checkpoint.path), "--out", f"{folder}/hf"]):
            return 1
        model, tokenizer, _ = load_assistant(options.model)
        command = [sys.executable, "-m", "openmai", "serve", str(options.model), "--port=0", "--name=ours", f"--weights={options.weights}"]
        with running(Contender("openmai", command), os.cpu_count() or 1) as (address, _):
            harness(options.python, folder, address, tokenizer.end_of_text)
        largest, requests, disagree = 0.0, 0, 0
        for task in TASKS:
            path = next((folder / "out").rglob(f"samples_{task}_*.jsonl"))
            for sample in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                for arguments, answer in zip(sample["arguments"].values(), sample["resps"], strict=True):
                    context, continuation = ("", arguments["arg_0"]) if task == "ours_text" else (arguments["arg_0"], arguments["arg_1"])
                    value, greedy = in_process(model, tokenizer, context, continuation)
                    found = answer[0] if isinstance(answer[0], list) else [answer[0], None]
                    largest, requests = max(largest, abs(float(found[0]) - value)), requests + 1
                    disagree += found[1] is not None and str(found[1]) != str(greedy)
    print(f"{count} documents in each task, {requests} log-likelihoods; largest difference {largest:.1e}, greedy differs in {disagree}")
    return 1 if largest > BOUND or disagree else 0


if __name__ == "__main__":
    sys.exit(main())
