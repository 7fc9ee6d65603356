#!/usr/bin/env python3
"""Write the random checkpoint that a golden was made from, and check that it is the very same.

  golden_checkpoint.py NAME DIR

Needs numpy. Fails if the sha256 of a weight file is not the one in goldens/index.json.
"""
import hashlib
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main():
    name, folder = sys.argv[1:]
    with open(os.path.join(ROOT, "goldens", "index.json")) as f:
        entries = {entry["name"]: entry for entry in json.load(f)["checkpoints"]}
    entry = entries.get(name)
    if not entry or not entry["options"]:
        sys.exit(f"no random checkpoint is called {name}; there are: {', '.join(entries)}")
    script = os.path.join(ROOT, "tools", "make_random_qwen35.py")
    subprocess.run([sys.executable, script, "--out", folder, *entry["options"]], check=True, stdout=subprocess.DEVNULL)
    for file, wanted in entry["sha256"].items():
        with open(os.path.join(folder, file), "rb") as f:
            found = hashlib.sha256(f.read()).hexdigest()
        if found != wanted:
            import numpy
            sys.exit(f"{name}: {file} has sha256 {found}, the golden was made from {wanted}. Either "
                     f"tools/make_random_qwen35.py was changed, or numpy {numpy.__version__} draws other numbers than "
                     "the version in goldens/index.json: then make the goldens again, see docs/goldens.md.")


if __name__ == "__main__":
    main()
