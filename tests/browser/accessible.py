"""What axe finds amiss of WCAG's levels A and AA in a part of a page."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

__all__ = ["amiss"]

LEVELS = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}, "resultTypes": ["violations"]}
"""Of what passes axe describes one element a rule: describing thousands took it most of its time."""


def amiss(page: Page, part: str = ".hvlab-workbench") -> list[str]:
    """Each violation with its first elements; the checks must have found something to look at."""
    response = Axe().run(page, context=part, options=LEVELS).response
    assert len(response["passes"]) > 5, "axe checked next to nothing"
    return [f"{v['id']}: {v['help']}: {[node['html'][:160] for node in v['nodes'][:3]]}" for v in response["violations"]]
