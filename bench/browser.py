"""`python -m bench.browser`: how long the page map takes to draw and to answer, measured in Chromium.

A map of 2^28 pages with 11, 100,000 and 1,000,000 runs is panned, zoomed and pointed at by events as a person makes them.  `draw` is the
script's own time for a frame, `frame` the time from the event to the end of the frame that shows it, the wait for the screen included:
median, 95th percentile and maximum.
"""

import shutil
import statistics
import sys

import numpy as np
from playwright.sync_api import Browser, Page, Route, sync_playwright

from hvcore.inspect.runs import Runs
from hvcore.spec.e820 import E820Entry
from widgets.lanes import MapLane
from widgets.pagemap import PageMap

from .__main__ import Row, show

PAGES, SIZES, REPEATS, MOST = 1 << 28, (11, 100_000, 1_000_000), 200, 50.0
"""Pages of the map, its runs, events of each kind, and the most that one may take in milliseconds."""
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
ORIGIN = "http://bench.invalid"
"""Where the page comes from: it is answered here, nothing is asked of a network."""

# A model that holds the widget's traits, and events like a person's.
SETUP = """async ([traits, binary]) => {
    const values = { ...traits, selection: 'IPY_MODEL_s' };
    for (const name of binary) values[name] = new DataView(await (await fetch('/' + name)).arrayBuffer());
    const model = (values) => ({
        get: (name) => values[name], set: (name, value) => { values[name] = value; }, save_changes() {}, on() {}, off() {},
    });
    const chosen = model({ address: null, space: 'physical', device: null, domain: '', fault: null });
    const { default: widget } = await import('/view.js');
    const whole = { ...model(values), widget_manager: { get_model: async () => chosen } };
    widget.render({ model: whole, el: document.querySelector('main') });
    await new Promise((done) => setTimeout(done, 300));
}"""
MEASURE = """async ([events, repeats]) => {
    const stage = document.querySelector('.hv-stage'), canvas = stage.querySelector('canvas');
    const frame = () => new Promise((done) => requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = done;
        channel.port2.postMessage(0);
    }));
    let seed = 1;
    const random = () => (seed = seed * 16807 % 2147483647) / 2147483647;
    const point = () => {
        const box = canvas.getBoundingClientRect();
        return { clientX: box.left + random() * box.width, clientY: box.top + random() * box.height };
    };
    const key = (key) => stage.dispatchEvent(new KeyboardEvent('keydown', { key, cancelable: true }));
    const wheel = (deltaY) => stage.dispatchEvent(new WheelEvent('wheel', { ...point(), ctrlKey: true, deltaY, cancelable: true }));
    const does = {
        zoom: () => wheel(random() < 0.55 ? -1 : 1), pan: () => key(random() < 0.5 ? 'PageDown' : 'PageUp'), whole: () => key('0'),
        hover: () => stage.dispatchEvent(new PointerEvent('pointermove', point())),
    };
    const draw = [], whole = [];
    for (let i = 0; i < repeats; i += 1) {
        await frame();
        const name = events[i % events.length], started = performance.now();
        does[name]();
        await frame();
        whole.push(performance.now() - started);
        draw.push(Number(name === 'hover' ? canvas.dataset.hoverMs ?? 0 : canvas.dataset.drawMs));
    }
    return { draw, frame: whole };
}"""
EVENTS = {"pan and zoom": ["zoom", "zoom", "zoom", "pan", "zoom", "pan"] * 5 + ["whole"], "hover": ["hover"]}


def runs_of(count: int) -> Runs:
    """`count` runs of random length and right over all pages."""
    random = np.random.default_rng(count)
    edges = np.unique(np.concatenate([[0, PAGES], random.integers(1, PAGES, count)])).astype(np.uint64) * np.uint64(4096)
    rights = random.integers(0, 4, len(edges) - 1).astype(np.uint8)
    return Runs(edges[:-1], edges[1:], rights, np.zeros(len(rights), np.int64), ("-", "r", "w", "rw"))


def page_map(count: int) -> PageMap:
    """The map that is measured: a lane of `count` runs, and a quiet one."""
    lanes = [MapLane("guest CPU", Runs.of([(0, PAGES * 4096, "rwx", 0)])), MapLane("domain 0", runs_of(count), "iova", ("0x0/0x0",))]
    new = PageMap(axis="linear", lane=1)
    new.show_lanes(lanes, [E820Entry(0, PAGES * 4096, 1)], (1 << 31, (1 << 31) + (1 << 27)))
    return new


def opened(browser: Browser, view: PageMap, arrangement: str, zoom: float) -> Page:
    """The view in a page of its own."""
    traits = view.get_state() | {"arrangement": arrangement}
    binary = {name: bytes(value) for name, value in traits.items() if isinstance(value, bytes | memoryview)}
    names = ("lanes", "kinds", "fills", "places", "e820", "vmm", "words", "label", "axis", "lane", "arrangement")
    plain = {name: traits[name] for name in names}
    files: dict[str, tuple[str, str | bytes]] = {
        "": ("text/html", f"<!doctype html><style>{view._css}</style><main></main>"), "view.js": ("text/javascript", str(view._esm))}
    files |= {name: ("application/octet-stream", value) for name, value in binary.items()}

    def answer(route: Route) -> None:
        kind, body = files[route.request.url.removeprefix(ORIGIN + "/")]
        route.fulfill(content_type=kind, body=body)

    page = browser.new_context(viewport={"width": 1400, "height": 1000}, device_scale_factor=zoom).new_page()
    page.route(ORIGIN + "/**", answer)
    page.goto(ORIGIN + "/")
    page.evaluate(SETUP, [plain, list(binary)])
    return page


def row(what: str, times: list[float]) -> Row:
    """Median, 95th percentile and maximum of milliseconds; the percentile is what must not be too much."""
    nearly_all = statistics.quantiles(times, n=20)[-1]
    figures = f"{statistics.median(times):.1f} / {nearly_all:.1f} / {max(times):.1f} ms"
    return Row(what, figures, f"limit: {MOST:g} ms", nearly_all / MOST, nearly_all <= MOST)


def measured(browser: Browser, view: PageMap, count: int, arrangement: str, zoom: float) -> list[Row]:
    """Rows of one arrangement."""
    page = opened(browser, view, arrangement, zoom)
    rows = []
    for name, events in EVENTS.items():
        times: dict[str, list[float]] = page.evaluate(MEASURE, [events, REPEATS])
        rows += [row(f"{count:,} runs, {arrangement}, {zoom:g}x: {name}, {part}", values) for part, values in times.items()]
    page.context.close()
    return rows


def main() -> int:
    """Measures all sizes; exit status 1 where something takes longer than it may."""
    rows: list[Row] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        for count in SIZES:
            view = page_map(count)
            for arrangement, zoom in (("bands", 1.0), ("grid", 1.0), ("bands", 2.0)):
                rows += measured(browser, view, count, arrangement, zoom)
        browser.close()
    show(rows)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
