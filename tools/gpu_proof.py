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
  startup    8.4 GB of weights from the page cache, without and with compiled kernels of an earlier start
  table      batch 1, time to first token and between tokens, over the lengths of the article, in every mode

Builds with cargo unless --bin names a folder that holds `refrain` and `proof` (the example of refrain-gpu). Needs numpy;
`layers` needs torch and transformers. Exits with 1 if anything is wrong or slower than it must be on an
H100 (LIMITS), after all parts have run.
"""
import argparse
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PARTS = ["device", "ragged", "model", "goldens", "modes", "sanitizer", "layers", "startup", "table"]
LENGTHS = [1024, 4096, 8192, 16384, 24576, 32000]
# What an H100 must reach with the 4B shape: at most, or at least.
LIMITS = {
    "eager ITL at 1024, ms": ("at most", 4.0),
    "eager TTFT at 8192, ms": ("at most", 190.0),
    "GDN scan of 8192 tokens, ms a layer": ("at most", 0.8),
    "weights and all else, s": ("at most", 4.0),
    "cold start, s": ("at most", 20.0),
    "warm start, s": ("at most", 6.0),
    "measured against eager, least": ("at least", 1.0),
    "measured against the best fixed mode, least": ("at least", 0.99),
    "graph memory, MiB": ("at most", 64.0),
    "device memory taken after the start, bytes": ("at most", 0),
    "device memory in use beyond the plan, bytes": ("at most", 0),
}
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
        with open(path, "w+", errors="replace") as file:
            print("$ " + " ".join(command), file=file, flush=True)
            begin = file.tell()
            try:
                code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=timeout, cwd=ROOT,
                                      **options).returncode
            except subprocess.TimeoutExpired:
                code = 124
                os.write(file.fileno(), f"\nstopped after {timeout} s\n".encode())
            file.seek(begin)
            output = file.read()
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
            print(f"== {name}: no JSON in what it printed")
            self.wrong.append(name)
            return None

    def holds(self, what, value):
        """Compares a figure with what it must be."""
        direction, limit = LIMITS[what]
        good = value is not None and (value <= limit if direction == "at most" else value >= limit)
        print(f"{'ok   ' if good else 'WRONG'} {what}: {value}, {direction} {limit}", flush=True)
        self.results.setdefault("limits", {})[what] = value
        if not good:
            self.wrong.append(what)

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
        found, scan = self.json_of(shapes, command, 600), None
        for device in found or []:
            for case in (device.get("check") or {}).get("cases", []):
                if shapes == "ragged" and case.get("passes"):
                    continue
                seconds, share = case.get("seconds"), case.get("roofline_share")
                # JSON has no infinity and no NaN: an error of either is none.
                error = case.get("problem") or f"error {case.get('error')} of {case.get('tolerance')}"
                print(f"{'ok   ' if case.get('passes') else 'WRONG'} {case['kernel']:<26} {case['case']:<44} {error}"
                      + (f" {seconds * 1e6:9.1f} us" if seconds else "")
                      + (f" {share * 100:5.1f} %" if share else ""))
                if case["kernel"] == "gdn_scan" and seconds and case["case"].endswith("T 8192"):
                    scan = seconds * 1e3
        if shapes == "model":
            self.holds("GDN scan of 8192 tokens, ms a layer", scan)
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
        output = self.run("modes", [self.proof, self.args.device, "modes", *names], 500, env=STRICT)
        print("\n".join(line for line in output.splitlines() if line.startswith(("ok   ", "WRONG", "==", "graphs"))))

    def sanitizer(self):
        sanitizer = shutil.which("compute-sanitizer")
        if not sanitizer:
            print("== sanitizer: compute-sanitizer is not installed; name the other parts with --only")
            self.wrong.append("sanitizer")
            return
        for tool in ["memcheck", "racecheck", "initcheck"]:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", self.proof, self.args.device, "small",
                       "micro-0-bf16"]
            self.run("sanitizer-" + tool, command, 600, env=STRICT)
        # The engine as it is served: graphs, tokens chosen on the device, two steps in flight.
        # Where the tests keep it, which the runs before have made it for: below the folder that the program is built in.
        targets = [os.path.join(ROOT, "target"), os.path.join(self.args.bin, ".."), os.path.join(self.args.bin, "..", "..")]
        made = [folder for target in targets for folder in glob.glob(os.path.join(target, "test-checkpoints", "micro-0-bf16-*"))
                if os.path.exists(os.path.join(folder, "config.json"))]
        if not made:
            print("== sanitizer: the checkpoint of micro-0-bf16 is not there")
            self.wrong.append("sanitizer-engine")
            return
        folder = made[0]
        command = [self.refrain, "bench", "latency", folder, "--device", self.args.device, "--skip-tokenizer-init",
                   "--max-model-len", "512", "--max-num-seqs", "2", "--batch-size", "2", "--input-len", "100",
                   "--output-len", "8", "--num-iters-warmup", "0", "--num-iters", "1", "--policy-budget", "0.5"]
        for tool in ["memcheck", "racecheck"]:
            self.run(f"sanitizer-engine-{tool}", [sanitizer, "--tool", tool, "--error-exitcode", "9", *command], 300)

    def layers(self):
        folder = self.checkpoint("4b-4layers", "--size", "4b", "--set", "num_hidden_layers=4")
        ours = os.path.join(self.args.out, "logprobs.json")
        self.run("layers-ours", [self.proof, self.args.device, "logprobs", folder, ours], 200)
        script = os.path.join(ROOT, "tools", "gpu_reference.py")
        print(self.run("layers-reference", [sys.executable, script, folder, ours], 300).splitlines()[-1:])
        print(self.run("layers-batches", [self.proof, self.args.device, "batches", folder], 200))

    def engine(self, what):
        folder = self.checkpoint("4b", "--size", "4b", "--init", "tiled")
        return [self.refrain, "bench", what, folder, "--device", self.args.device, "--skip-tokenizer-init",
                "--max-model-len", "32768", "--max-num-seqs", "1", "--max-num-batched-tokens", "8192"]

    def startup(self):
        file = self.fresh("startup.json")
        print(self.run("startup", self.engine("startup") + ["--num-iters-cold", "1", "--num-iters-warmup", "1",
                                                            "--num-iters-warm", "3", "--output-json", file], 300))
        found = self.results["startup"] = self.read(file)
        median = lambda times: statistics.median(times) if times else None
        self.holds("cold start, s", median(found.get("cold_first_token_times")))
        self.holds("warm start, s", median(found.get("warm_first_token_times")))
        self.holds("weights and all else, s", found.get("warm_phases", {}).get("weights, and all else"))

    def table(self):
        file = self.fresh("table.json")
        command = self.engine("table") + ["--modes", "eager,compiled,graph,graph+compile,measured", "--lengths", ",".join(map(str, self.args.lengths)), "--output-dir",
                                          os.path.join(self.args.out, "table"), "--output-json", file]
        print(self.run("table", command, 600))
        found = self.results["table"] = self.read(file)
        eager = {length["input_len"]: mode for length in found.get("lengths", []) for mode in length["modes"]
                 if mode["mode"] == "eager"}
        milliseconds = lambda length, key: eager[length][key] * 1e3 if length in eager else None
        if 1024 in self.args.lengths:
            self.holds("eager ITL at 1024, ms", milliseconds(1024, "itl_seconds"))
        if 8192 in self.args.lengths:
            self.holds("eager TTFT at 8192, ms", milliseconds(8192, "ttft_seconds"))
        measured = next((mode for mode in found.get("summary", []) if mode["mode"] == "measured"), {})
        self.holds("measured against eager, least", measured.get("least_speedup"))
        self.holds("measured against the best fixed mode, least", measured.get("least_against_best_fixed"))
        graphs, memory = found.get("graph_memory_bytes"), found.get("memory")
        self.holds("graph memory, MiB", None if graphs is None else graphs / 2**20)
        taken = memory and memory["end_bytes"] - memory["ready_bytes"]
        self.holds("device memory taken after the start, bytes", taken)
        self.holds("device memory in use beyond the plan, bytes", memory and memory["ready_bytes"] - memory["planned_bytes"])

    def fresh(self, name):
        """A file for a report, without one of an earlier run in it."""
        path = os.path.join(self.args.out, name)
        if os.path.exists(path):
            os.remove(path)
        return path

    def read(self, path):
        try:
            with open(path) as file:
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
        if part not in args.only:
            continue
        try:
            getattr(proof, part)()
        except Exception:  # the parts behind it are proved all the same
            traceback.print_exc()
            proof.wrong.append(part)
        with open(os.path.join(args.out, "results.json"), "w") as file:
            json.dump(proof.results, file, indent=1)
    print("wrong:" if proof.wrong else "all right", *proof.wrong)
    sys.exit(1 if proof.wrong else 0)


if __name__ == "__main__":
    main()
