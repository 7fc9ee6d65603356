#!/usr/bin/env python3
"""Build, check and time everything on a real GPU in one run; docs/benchmarks/gpu.md says what the numbers mean.

  gpu_proof.py [--device cuda:0] [--out DIR] [--work DIR] [--bin DIR] [--only PART ...]

Parts, in this order:
  device     what the device can do at best
  ragged     every kernel against double precision, small and odd operands
  model      every kernel at the shapes of a 4B model, with its share of the roofline
  goldens    the golden gates in F32 and BF16, every way of cutting and batching
  modes      some of them compiled, replayed from graphs, and both; greedy answers as op by op
  sanitizer  compute-sanitizer (memcheck, racecheck, initcheck) on a small golden
  layers     the first layers of the 4B shape against Hugging Face transformers in F32, and stable in batches
  load       8.4 GB of weights from the page cache
  latency    batch 1, time to first token and between tokens, over the lengths of the article
  table      the same in every mode, side by side

Builds with cargo unless --bin names a folder that holds `refrain` and `proof` (the example of refrain-gpu). Needs numpy;
`layers` needs torch and transformers. Exits with 1 if anything is wrong, after all parts have run.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PARTS = ["device", "ragged", "model", "goldens", "modes", "sanitizer", "layers", "load", "latency", "table"]
LENGTHS = [1024, 4096, 8192, 16384, 24576, 32000]
# Where checkpoints can't be made, the proof fails instead of leaving them out.
STRICT = {**os.environ, "CI": "1"}


class Proof:
    def __init__(self, args):
        self.args, self.wrong, self.results = args, [], {}
        self.refrain = os.path.join(args.bin, "refrain")
        self.proof = os.path.join(args.bin, "proof")

    def run(self, name, command, timeout, **options):
        """Runs a command, keeps its output in a file, and gives it; a failure is noted."""
        start = time.time()
        path = os.path.join(self.args.out, name + ".log")
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                  timeout=timeout, cwd=ROOT, **options)
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            output, code = (error.stdout or b"").decode(errors="replace") + f"\nstopped after {timeout} s", 124
        with open(path, "w") as file:
            file.write("$ " + " ".join(command) + "\n" + output)
        print(f"== {name}: {'ok' if code == 0 else f'exit {code}'} in {time.time() - start:.1f} s", flush=True)
        if code != 0:
            self.wrong.append(name)
            print("\n".join(output.splitlines()[-25:]), flush=True)
        return output

    def json_of(self, name, command, timeout):
        """The same for a command that prints JSON on standard output behind what it logs."""
        output = self.run(name, command, timeout)
        start = min((at for at in (output.find("\n["), output.find("[\n"), output.find("{\n")) if at >= 0), default=-1)
        try:
            return json.JSONDecoder().raw_decode(output[start:].lstrip())[0]
        except (ValueError, IndexError):
            return None

    def checkpoint(self, name, *options):
        folder = os.path.join(self.args.work, name)
        if not os.path.exists(os.path.join(folder, "config.json")):
            script = os.path.join(ROOT, "tools", "make_random_qwen35.py")
            self.run("make-" + name, [sys.executable, script, "--out", folder, "--tokenizer", "none", *options], 300)
        return folder

    def device(self):
        found = self.json_of("device", [self.refrain, "device", "--device", self.args.device, "--json"], 120)
        if found:
            print(json.dumps(found[0].get("measured"), indent=1))
        self.results["device"] = found

    def kernels(self, shapes):
        command = [self.refrain, "device", "--device", self.args.device, "--check", "--shapes", shapes, "--json"]
        found = self.json_of(shapes, command, 600)
        for device in found or []:
            for case in (device.get("check") or {}).get("cases", []):
                if shapes == "ragged" and case["passes"]:
                    continue
                seconds, share = case["seconds"], case["roofline_share"]
                print(f"{'ok   ' if case['passes'] else 'WRONG'} {case['kernel']:<26} {case['case']:<44}"
                      f" error {case['error']:.1e} of {case['tolerance']:.1e}"
                      + (f" {seconds * 1e6:9.1f} us" if seconds else "")
                      + (f" {share * 100:5.1f} %" if share else ""))
        self.results[shapes] = found

    def ragged(self):
        self.kernels("ragged")

    def model(self):
        self.kernels("model")

    def goldens(self):
        output = self.run("goldens", [self.proof, self.args.device, "goldens"], 400, env=STRICT)
        print("\n".join(line for line in output.splitlines() if line.startswith(("ok   ", "WRONG"))))

    def modes(self):
        names = ["micro-0-f32", "micro-0-bf16", "odd-1-f32"]
        output = self.run("modes", [self.proof, self.args.device, "modes", *names], 500)
        print("\n".join(line for line in output.splitlines() if line.startswith(("ok   ", "WRONG", "==", "graphs"))))

    def sanitizer(self):
        sanitizer = shutil.which("compute-sanitizer")
        if not sanitizer:
            print("== sanitizer: skipped, compute-sanitizer is not installed")
            return
        for tool in ["memcheck", "racecheck", "initcheck"]:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", self.proof, self.args.device, "small",
                       "micro-0-bf16"]
            self.run("sanitizer-" + tool, command, 200, env=STRICT)

    def layers(self):
        folder = self.checkpoint("4b-4layers", "--size", "4b", "--set", "num_hidden_layers=4")
        ours = os.path.join(self.args.out, "logprobs.json")
        self.run("layers-ours", [self.proof, self.args.device, "logprobs", folder, ours], 200)
        script = os.path.join(ROOT, "tools", "gpu_reference.py")
        print(self.run("layers-reference", [sys.executable, script, folder, ours], 300).splitlines()[-1:])
        print(self.run("layers-batches", [self.proof, self.args.device, "batches", folder], 200))

    def engine(self, folder):
        return [self.refrain, "bench", "latency", folder, "--device", self.args.device, "--skip-tokenizer-init",
                "--max-model-len", "32768", "--max-num-seqs", "1", "--max-num-batched-tokens", "8192",
                "--batch-size", "1"]

    def load(self):
        folder = self.checkpoint("4b", "--size", "4b", "--init", "tiled")
        times = []
        for attempt in range(3):
            command = self.engine(folder) + ["--input-len", "32", "--output-len", "8", "--num-iters-warmup", "0",
                                             "--num-iters", "1", "--output-json", os.path.join(self.args.out, "load.json")]
            self.run(f"load-{attempt}", command, 200)
            found = self.read("load.json")
            times.append((found.get("weights_seconds"), found.get("load_seconds"), found.get("start_to_first_token")))
        print("weights s, load s, process start to first token s:", times)
        self.results["load"] = times

    def latency(self):
        folder = self.checkpoint("4b", "--size", "4b", "--init", "tiled")
        rows = []
        for length in self.args.lengths:
            command = self.engine(folder) + ["--input-len", str(length), "--output-len", "128", "--num-iters-warmup", "1",
                                             "--num-iters", "3", "--output-json", os.path.join(self.args.out, "latency.json")]
            self.run(f"latency-{length}", command, 200)
            found = self.read("latency.json")
            if found:
                row = dict(input=length, ttft_ms=found["time_to_first_token"] * 1e3,
                           itl_ms=1e3 / found["decode_tokens_per_second"], total_s=statistics.median(found["latencies"]))
                rows.append(row)
                print(row, flush=True)
        self.results["latency"] = rows

    def table(self):
        folder = self.checkpoint("4b", "--size", "4b", "--init", "tiled")
        command = [self.refrain, "bench", "table", folder, "--device", self.args.device, "--skip-tokenizer-init",
                   "--max-model-len", "32768", "--max-num-seqs", "1", "--max-num-batched-tokens", "8192", "--lengths",
                   ",".join(map(str, self.args.lengths)), "--output-dir", os.path.join(self.args.out, "table")]
        print(self.run("table", command, 400))

    def read(self, name):
        try:
            with open(os.path.join(self.args.out, name)) as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", default=os.path.join(ROOT, "target", "gpu-proof"))
    parser.add_argument("--work", default=os.path.join(ROOT, "target", "gpu-checkpoints"))
    parser.add_argument("--bin")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    args = parser.parse_args()
    for folder in [args.out, args.work]:
        os.makedirs(folder, exist_ok=True)
    if not args.bin:
        build = ["cargo", "build", "--release", "-p", "refrain", "-p", "refrain-gpu", "--bins", "--examples"]
        subprocess.run(build, cwd=ROOT, check=True)
        args.bin = os.path.join(ROOT, "target", "release")
        shutil.copy(os.path.join(args.bin, "examples", "proof"), args.bin)
    args.bin = os.path.abspath(args.bin)
    proof = Proof(args)
    for part in PARTS:
        if part in args.only:
            getattr(proof, part)()
    with open(os.path.join(args.out, "results.json"), "w") as file:
        json.dump(proof.results, file, indent=1)
    print("wrong:" if proof.wrong else "all right", *proof.wrong)
    sys.exit(1 if proof.wrong else 0)


if __name__ == "__main__":
    main()
