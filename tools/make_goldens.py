#!/usr/bin/env python3
"""Make the goldens: what Hugging Face transformers says about some prompts, in float32 on the CPU.

  make_goldens.py [--out goldens] [--only NAME ...]

Needs torch, transformers and numpy (made with the versions that goldens/index.json names), not the accelerated GDN
packages: without them transformers runs its own torch implementation, which is the reference here.

For every checkpoint (the embedded tinytales, and random ones from make_random_qwen35.py beside this script) and every
prompt: the 20 most probable tokens after each of some positions, with their log-probabilities. docs/goldens.md says
how the files are laid out and what tests do with them. Weights stored in bf16 or f16 are upcast and everything is
computed in float32, so one reference serves every precision of the engine. Those stored in f32 get a second reference
with their matrices rounded to bf16, as the engine does when it is told to convert them.
"""
import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOP = 20
ROUNDED = [f"{size}-{seed}-f32" for size in ("tiny", "micro") for seed in range(3)]
LENGTHS = [1, 63, 64, 65, 200, 1500]

# An odd shape: nothing is a power of two or a multiple of 16, three value heads share nothing.
ODD = {"vocab_size": 509, "hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 3,
       "num_key_value_heads": 1, "head_dim": 40, "linear_num_key_heads": 1, "linear_num_value_heads": 3,
       "linear_key_head_dim": 24, "linear_value_head_dim": 40}


def options(size, seed, arch, dtype, *more):
    return ["--size", size, "--seed", str(seed), "--arch", arch, "--dtype", dtype, "--tokenizer", "none", *more]


def overrides(values):
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def checkpoints():
    """name -> options of make_random_qwen35.py; None for the embedded model. Both architectures and both stored
    types meet every size; sharding, MTP weights and the all-one-type layout are spread over them."""
    yield "tinytales", None
    for size in ("tiny", "micro"):
        yield f"{size}-0-f32", options(size, 0, "causal", "f32")
        yield f"{size}-0-bf16", options(size, 0, "conditional", "bf16")
        yield f"{size}-1-f32", options(size, 1, "conditional", "f32", "--mtp")
        yield f"{size}-1-bf16", options(size, 1, "causal", "bf16", "--all-same-dtype", "--shard-gb", "0.001")
        yield f"{size}-2-f32", options(size, 2, "causal", "f32", "--shard-gb", "0.001")
        yield f"{size}-2-bf16", options(size, 2, "conditional", "bf16", "--mtp")
    yield "micro-3-f16", options("micro", 3, "causal", "f16")
    yield "odd-1-f32", options("micro", 1, "causal", "f32", *overrides(ODD))
    yield "odd-1-bf16", options("micro", 1, "conditional", "bf16", *overrides(ODD))
    yield "dense-4-bf16", options("micro", 4, "causal", "bf16", "--set", "full_attention_interval=1")
    gdn_only = {"full_attention_interval": 99, "hidden_size": 256}
    yield "gdn-6-f32", options("micro", 6, "causal", "f32", *overrides(gdn_only))


def positions(length):
    """All of a short prompt; of a long one every 16th or 32nd, both sides of the first chunk boundaries, the end."""
    if length <= 65:
        return list(range(length))
    every = 16 if length <= 256 else 32
    chosen = set(range(0, length, every)) | set(range(length - 8, length))
    for boundary in range(64, min(length, 513), 64):
        chosen |= {boundary - 1, boundary}
    return sorted(chosen)


def random_prompts(vocab_size):
    chooser = random.Random(f"refrain goldens {vocab_size}")
    return {str(n): [chooser.randrange(vocab_size) for _ in range(n)] for n in LENGTHS}


def tinytales_prompts(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with open(os.path.join(ROOT, "goldens", "tinytales_evals.jsonl")) as f:
        texts = [x["prompt"] + x["reference"] + "<|im_end|>\n" for x in map(json.loads, f) if x["kind"] == "qa"]
    ids = tokenizer("".join(texts), add_special_tokens=False)["input_ids"]
    prompts, start = {}, 0
    for n in LENGTHS:  # each length gets a text of its own, the longest from the beginning
        prompts[str(n)] = ids[start:start + n] if n < 1500 else ids[:n]
        assert len(prompts[str(n)]) == n
        start += n
    return prompts


def sha256s(folder):
    """Of the weight files: the name of each and its digest."""
    digests = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as f:
                digests[name] = hashlib.sha256(f.read()).hexdigest()
    return digests


def load(folder):
    architecture = AutoConfig.from_pretrained(folder).architectures[0]
    cls = {"Qwen3_5ForCausalLM": Qwen3_5ForCausalLM,
           "Qwen3_5ForConditionalGeneration": Qwen3_5ForConditionalGeneration}[architecture]
    model, info = cls.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"], info["missing_keys"]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return model.eval()


@torch.inference_mode()
def top_logprobs(model, ids, at):
    """ids: u32 [len(at), TOP], best first; values: f32 [len(at), TOP]."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, at]
    assert logits.dtype == torch.float32 and torch.isfinite(logits).all()
    values, tokens = torch.log_softmax(logits.double(), dim=-1).topk(TOP, dim=-1)
    return tokens.numpy().astype("<u4"), values.numpy().astype("<f4")


@torch.inference_mode()
def round_matrices(model):
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            module.weight.copy_(module.weight.bfloat16())


def write_reference(model, prompts, path):
    data = b""
    for ids in prompts.values():
        tokens, values = top_logprobs(model, ids, positions(len(ids)))
        data += tokens.tobytes() + values.tobytes()
    with open(path, "wb") as f:
        f.write(data)
    print(f"{path}: {len(data)} bytes", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(ROOT, "goldens"))
    parser.add_argument("--only", action="append", default=[], help="only this checkpoint; leaves the index alone")
    args = parser.parse_args()
    script = os.path.join(ROOT, "tools", "make_random_qwen35.py")
    prompts, entries = {}, []
    for name, opts in checkpoints():
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            if opts is None:
                folder = os.path.join(ROOT, "models", name)
            else:
                folder = temporary
                subprocess.run([sys.executable, script, "--out", folder, *opts], check=True, stdout=subprocess.DEVNULL)
            model = load(folder)
            vocab_size = model.config.get_text_config().vocab_size
            kind = name if opts is None else f"random-{vocab_size}"
            if kind not in prompts:
                prompts[kind] = tinytales_prompts(folder) if opts is None else random_prompts(vocab_size)
            write_reference(model, prompts[kind], os.path.join(args.out, name + ".bin"))
            if name in ROUNDED:
                round_matrices(model)
                write_reference(model, prompts[kind], os.path.join(args.out, name + ".rounded.bin"))
            entries.append({"name": name, "options": opts, "prompts": kind, "sha256": sha256s(folder)})
    if not args.only:
        index = {
            "made_with": {m.__name__: m.__version__ for m in (torch, transformers, np)},
            "top": TOP,
            "positions": {str(n): positions(n) for n in LENGTHS},
            "prompts": prompts,
            "checkpoints": entries,
        }
        with open(os.path.join(args.out, "index.json"), "w") as f:
            json.dump(index, f, separators=(",", ":"))
            f.write("\n")


if __name__ == "__main__":
    main()
