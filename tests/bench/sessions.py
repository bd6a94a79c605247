"""Prompts of real sessions, from the recorded traces."""

import json
import os
from pathlib import Path

from stack import REPOSITORY


def folder():
    return Path(os.environ.get("CAIRN_TRACES") or REPOSITORY.parent / "shared/traces") / "agents"


def recorded(wanted, files, prompts, characters, skipped=0):
    """Of each of the first `files` whose name is `wanted`, some skipped, the prompts of more than 400 characters in time order, the first
    few, cut. None where there are no traces."""
    if not folder().is_dir():
        return None
    sessions = []
    for name in sorted(filter(wanted, os.listdir(folder())))[skipped:skipped + files]:
        rows = [json.loads(line) for line in (folder() / name).read_text(encoding="utf-8").splitlines()]
        rows.sort(key=lambda row: row["timestamp"])
        texts = [row["input"][:characters] for row in rows if len(row["input"]) > 400]
        sessions.append(texts[:prompts])
    return sessions


def swe(name):
    return name[0].isdigit()


def magagent(name):
    return name.startswith("magagent-")
