"""The backend's web page in headless Chromium through Cairn, for two turns. CAIRN_SCREENSHOT names a file to keep the picture in.

Where this llama-server has no page built in (Debian's has none), the older one that comes with it is served with --path."""

import json
import os
import shutil
from pathlib import Path

import pytest

from conftest import run_node
from stack import Stack, call, llama_server


def page_flags():
    """[] when the page is built in is found out by asking; this is the folder to serve otherwise."""
    roots = [Path("/usr/share"), *(Path(llama_server()[0]).resolve().parent / up / "usr/share" for up in (".", "..", "../..")),
             *([Path(os.environ["CAIRN_LLAMA_ROOT"]) / "usr/share"] if "CAIRN_LLAMA_ROOT" in os.environ else [])]
    for root in roots:
        folder = root / "llama.cpp/llama-server/simplechat-legacy-ui"
        if folder.is_dir():
            return ["--path", folder]
    return []


def test_two_turns_in_the_web_page(packages, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium: apt-get install chromium")
    stack = Stack(tmp_path / "web", "llama", backend_flags=("-np", "2", "-c", "16384", *page_flags()), cairn_flags=())
    try:
        if call(stack.port, "GET", "/", headers={"Accept-Encoding": "gzip"}).status != 200:
            pytest.skip("this llama-server has no web page")
        screenshot = Path(os.environ.get("CAIRN_SCREENSHOT", tmp_path / "page.png"))
        said = json.loads(run_node("web_page.mjs", f"http://127.0.0.1:{stack.port}/", browser, screenshot, cwd=packages, timeout=180))
        assert said["failures"] == []
        assert [answer["status"] for answer in said["answers"]] == [200, 200]
        first, second = (answer["text"] for answer in said["answers"])
        assert "Which way leads back?" in first and "And then?" in second and len(second) > len(first)
        assert screenshot.stat().st_size > 5000
        latest = [row for row in stack.cairn.status()["latest_requests"] if row["path"].endswith("/chat/completions")]
        assert len(latest) == 2, "both turns went through the cache"
        assert max(row["reused_tokens"] for row in latest) > 0, "the second turn reused the first"
    finally:
        stack.close()
