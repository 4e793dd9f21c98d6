"""A page as a tagged PDF, printed by Chromium: headings and tables stay what they are for a screen reader, and pictures have words."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import HvlabError

__all__ = ["BROWSERS", "print_pdf"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Programs that print, of which the first that is installed does."""
_FLAGS = ("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
          "--disable-sync", "--disable-extensions", "--no-pdf-header-footer", "--generate-pdf-document-outline")
_LIMIT = 300
"""Seconds."""


def print_pdf(text: str, path: Path) -> None:
    """Writes HTML without scripts as a PDF.  Raises HvlabError where there is no browser, or it makes none."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise HvlabError(f"{path.name}: a PDF is printed by Chromium, which is not installed: install it "
                         "(Debian: apt-get install chromium), or write an .html and print that")
    with tempfile.TemporaryDirectory(prefix="hvlab-") as folder:
        source, made = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_bytes(text.encode("utf-8", "replace"))
        _run([program, *_FLAGS, *_sandbox(), f"--user-data-dir={folder}/profile", f"--print-to-pdf={made}", source.as_uri()], path.name)
        if not made.exists():
            raise HvlabError(f"{path.name}: {program} has printed nothing: write an .html and print that")
        shutil.copyfile(made, path)


def _sandbox() -> list[str]:
    """Root has no sandbox in Chromium."""
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def _run(words: list[str], name: str) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True, timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        raise HvlabError(f"{name}: {words[0]} has not printed it within {_LIMIT} s: write an .html and print that") from None
    except (OSError, subprocess.CalledProcessError) as e:
        raise HvlabError(f"{name}: {words[0]} cannot print it ({e}): write an .html and print that") from None
