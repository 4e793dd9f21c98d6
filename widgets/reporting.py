"""Where a report was written, as a link that a notebook opens."""

import html
import os
import re
from pathlib import Path
from urllib.parse import quote

import ipywidgets as ipw

__all__ = ["ReportLink", "can_report", "report_path"]


def can_report() -> bool:
    """Whether files beside the notebook can be opened: not by the visitors of a classroom (Voilà), who see no files."""
    return not os.environ.get("SERVER_SOFTWARE", "").startswith("voila")


def report_path(machine: str, run: int) -> Path:
    """The file beside the notebook for the report of a machine's run: no other run of the machine has its name."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", machine).strip("-") or "machine"
    return Path(f"report-{plain}-run-{run}.html")


class ReportLink(ipw.Output):
    """Nothing, until `show(path)`.  It is the notebook's output, where a link to a file beside the notebook is known as one."""

    def show(self, path: Path) -> None:
        """Shows a link to a report in the notebook's folder."""
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        link = f'<a href="{quote(path.name)}" target="_blank" rel="noopener">{html.escape(path.name)}</a>'
        words = (f"It works without a network and without this kernel ({size}). JupyterLab shows its pictures; <em>Trust HTML</em> "
                 "wakes its views.")
        data = {"text/html": f'<p class="hvlab-report">Report: {link}. {words}</p>', "text/plain": f"Report: {path.name} ({size})"}
        self.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)
