#!/usr/bin/env python3
"""Compare log-probabilities of the engine with Hugging Face transformers in F32 on the same device.

  gpu_reference.py CHECKPOINT LOGPROBS.json

LOGPROBS.json is what `proof DEVICE logprobs` wrote: for each prefix of some prompts the 20 best tokens. Fails outside the
BF16 gate: arg-max regret 0.20 nat, mean difference 0.06, 99th percentile 0.20. Needs torch and transformers.
"""
import json
import sys

import torch
from transformers import AutoConfig, Qwen3_5ForCausalLM


def main():
    folder, path = sys.argv[1:]
    with open(path) as file:
        found = json.load(file)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = AutoConfig.from_pretrained(folder)
    model = Qwen3_5ForCausalLM.from_pretrained(folder, config=getattr(config, "text_config", config), dtype=torch.float32)
    model = model.to(device).eval()
    differences, regrets, same = [], [], 0
    prompts = {}
    for row in found:
        prompts.setdefault(tuple(row["ids"][:8]), []).append(row)
    for rows in prompts.values():
        longest = max(rows, key=lambda row: len(row["ids"]))["ids"]
        with torch.no_grad():
            logits = model(torch.tensor([longest], device=device)).logits[0].double()
        reference = torch.log_softmax(logits, -1)
        for row in rows:
            here = reference[len(row["ids"]) - 1]
            for token, logprob in row["top"]:
                differences.append(abs(here[token].item() - logprob))
            regrets.append((here.max() - here[row["top"][0][0]]).item())
            same += int(here.argmax().item() == row["top"][0][0])
    differences.sort()
    mean, p99 = sum(differences) / len(differences), differences[int(len(differences) * 0.99)]
    passes = max(regrets) <= 0.20 and mean <= 0.06 and p99 <= 0.20
    print(f"{'ok' if passes else 'WRONG'}: {len(regrets)} positions, same best token at {same}, regret {max(regrets):.4f},"
          f" mean {mean:.4f}, p99 {p99:.4f}")
    sys.exit(0 if passes else 1)


if __name__ == "__main__":
    main()
