"""Tables and verdicts of never_slower: printed as they come, and kept as Markdown for RESULTS.md."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from stack import llama_server

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# never_slower: results

Written by `tests/bench/never_slower --write`; its `--help` says what is measured, the targets are those of each section's verdicts.
Each section was measured in one run, the backend alone and through Cairn in turn.
"""


def number(value):
    """A cell: thousands apart, as many digits as say something."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


class Section:
    """What one line of the proof found."""

    def __init__(self, line, title):
        self.line = line
        self.title = title
        self.text = []
        self.columns = []
        self.verdicts = []
        self.began = time.monotonic()
        print(f"\n== {line}. {title}", flush=True)

    def put(self, text):
        if not text and self.text and not self.text[-1]:
            return
        self.text.append(text)
        print(text, flush=True)

    def note(self, text):
        self.put("")
        self.put(text)
        self.put("")

    def table(self, *columns):
        self.columns = columns
        self.put("")
        self.put("| " + " | ".join(columns) + " |")
        self.put("|" + "---|" * len(columns))

    def row(self, *cells):
        assert len(cells) == len(self.columns), (cells, self.columns)
        self.put("| " + " | ".join(number(cell).replace("|", "\\|") for cell in cells) + " |")

    def verdict(self, what, value, target, passed, counts=True):
        """`counts` False: a failure is shown, but fails the run only with --strict-times."""
        self.verdicts.append((what, value, target, passed, counts))

    def end(self):
        """Prints the verdicts."""
        self.table("verdict", "found", "target", "")
        for what, value, target, passed, counts in self.verdicts:
            word = "pass" if passed else "**FAIL**" if counts else "**FAIL** (a time)"
            self.row(what, value, target, word)
        self.put("")
        print(f"line {self.line}: {time.monotonic() - self.began:.0f} s", flush=True)

    def failed(self, strict_times):
        return any(not passed and (counts or strict_times) for _, _, _, passed, counts in self.verdicts)


# --- RESULTS.md -------------------------------------------------------------------------------------------

def machine():
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else 'an unnamed CPU'}"


def server_version():
    said = subprocess.run([*llama_server(), "--version"], capture_output=True, text=True, check=False)
    return next((text.removeprefix("version: ") for text in (said.stdout + said.stderr).splitlines() if "version" in text),
                "of unknown version")


def command():
    """As it was given, without paths of the machine."""
    words = ["DIR" if word.startswith("/") else re.sub(r"=/\S*", "=DIR", word) for word in sys.argv[1:]]
    return shlex.join(["tests/bench/never_slower", *words])


def write(section, on):
    """Puts the section in the place of the one with the same heading, or where its number belongs."""
    heading = f"## {section.line}. {section.title}" + (f" ({on})" if on else "")
    body = "\n".join([heading, "", f"{time.strftime('%Y-%m-%d')}, {on + ', ' if on else ''}{machine()}; llama-server "
                                   f"{server_version()}. `{command()}`", *section.text]).rstrip() + "\n"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEAD
    head, *parts = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    kept = [part.rstrip() + "\n" for part in parts if part.splitlines()[0] != heading]
    kept.append(body)
    kept.sort(key=lambda part: part.splitlines()[0])
    RESULTS.write_text("\n".join([head.rstrip() + "\n", *kept]), encoding="utf-8")
