#!/usr/bin/env python3
"""Checks proxy/'s sources against the rules that no compiler knows. Exits non-zero and names each line that breaks one.

 * The arrows: base <- prefix <- plan <- (checkpoint, backend, slots) <- request <- http <- main; observe stands on base and
   may be used from request upwards; simulate stands on checkpoint and is used by main.
 * A header begins with a comment sentence that says what it is for.
 * A file of more than 500 lines says why in the comment at its head ("Long: ...").
 * What a folder includes of itself and others is named by its path from proxy/, so that this check sees it.
"""

import re
import sys
from pathlib import Path

PROXY = Path(__file__).resolve().parents[2] / "proxy"
MOST_LINES = 500

BELOW = {
    "base": set(),
    "prefix": {"base"},
    "plan": {"base", "prefix"},
    "checkpoint": {"base", "prefix", "plan"},
    "backend": {"base", "prefix", "plan"},
    "slots": {"base", "prefix", "plan"},
    "observe": {"base"},
    "request": {"base", "prefix", "plan", "checkpoint", "backend", "slots", "observe"},
    "simulate": {"base", "prefix", "plan", "checkpoint"},
    "http": {"base", "prefix", "plan", "checkpoint", "backend", "slots", "observe", "request"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def head_comment(lines):
    """The text of the comment that a file begins with."""
    text = []
    for line in lines:
        if not line.startswith("//"):
            break
        text.append(line[2:].strip())
    return " ".join(text)


def check(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    parts = path.relative_to(PROXY).parts
    folder = parts[0] if len(parts) > 1 else None
    if folder is not None and folder not in BELOW:
        yield 1, f"the folder {folder} has no place among the arrows: give it one here and in ARCHITECTURE.md"
        return
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        target = match[1]
        if not (PROXY / target).is_file():
            yield number, f"{target} is no path from proxy/"
            continue
        used = target.split("/")[0] if "/" in target else None
        if folder is None:
            continue  # main and what belongs to it may use everything
        if used is None:
            yield number, f"{folder} must not use {target}, which belongs to main"
        elif used != folder and used not in BELOW[folder]:
            yield number, f"{folder} must not use {used} ({target})"
    comment = head_comment(lines)
    if path.suffix == ".hpp" and not re.match(r"[A-Z`\"(].{15,}?[.:](\s|$)", comment):
        yield 1, "a header begins with a comment sentence that says what it is for"
    if len(lines) > MOST_LINES and "Long:" not in comment:
        yield 1, f"{len(lines)} lines: split it, or say 'Long: ...' with the reason in the comment at its head"


def main():
    files = sorted(path for path in PROXY.rglob("*") if path.suffix in (".hpp", ".cpp"))
    broken = [f"{path.relative_to(PROXY.parent)}:{number}: {what}" for path in files for number, what in check(path)]
    print("\n".join(broken))
    print(f"{len(files)} files, {len(broken)} broken rules")
    return 1 if broken or not files else 0


if __name__ == "__main__":
    sys.exit(main())
