#!/usr/bin/env python3
"""Check the licence and the source of every dependency against deny.toml, where cargo-deny is not installed.

  check_licences.py          exit status 1 and a list when something is not allowed

Knows no advisories: only cargo-deny does. Needs Python 3.11 and nothing else.
"""
import json
import os
import re
import subprocess
import sys
import tomllib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def allowed(expression, licences):
    """Evaluates an SPDX expression of AND, OR, WITH, brackets, and the old `/` for OR."""
    words = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    terms = []
    for word in words:  # `A WITH B` is one licence
        if terms and (word == "WITH" or terms[-1].endswith(" WITH")):
            terms[-1] += " " + word
        else:
            terms.append(word)
    position = 0

    def either():
        nonlocal position
        result = both()
        while position < len(terms) and terms[position] == "OR":
            position += 1
            result = both() or result
        return result

    def both():
        nonlocal position
        result = single()
        while position < len(terms) and terms[position] == "AND":
            position += 1
            result = single() and result
        return result

    def single():
        nonlocal position
        position += 1
        if terms[position - 1] == "(":
            result = either()
            position += 1
            return result
        return terms[position - 1] in licences

    return either()


def main():
    with open(os.path.join(ROOT, "deny.toml"), "rb") as f:
        rules = tomllib.load(f)
    licences = set(rules["licenses"]["allow"])
    exceptions = {rule["crate"]: set(rule["allow"]) for rule in rules["licenses"]["exceptions"]}
    banned = {rule["crate"]: rule["reason"] for rule in rules["bans"]["deny"]}
    sources = {"registry+" + url for url in rules["sources"]["allow-registry"]}
    command = ["cargo", "metadata", "--format-version", "1", "--all-features", "--locked"]
    packages = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    wrong = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        expression = package["license"]
        if not expression or not allowed(expression, licences | exceptions.get(package["name"], set())):
            wrong.append(f"{name}: licence {expression}")
        if package["source"] is not None and package["source"] not in sources:
            wrong.append(f"{name}: from {package['source']}")
        if package["name"] in banned:
            wrong.append(f"{name}: {banned[package['name']]}")
    if wrong:
        sys.exit("not allowed by deny.toml:\n" + "\n".join(wrong))
    print(f"licences and sources of {len(packages)} packages are allowed by deny.toml; advisories were not checked")


if __name__ == "__main__":
    main()
