// The page map: its bar, legend, lanes and canvas, and what pointer and keyboard do with them.  All of it happens in the browser.

const SEARCHES = {
  boundary: "boundary", mixed: "mixed pixel", write: "page that can be written", difference: "difference or stale page",
};
const CHANGES = ["gained", "lost", "changed"], DIFFERENT = [...CHANGES, "stale"], WRITABLE = ["w", "rw", "rwx", "untranslated"];
const KEYS = "Arrow keys move the cursor, with Shift they pan; Page Up and Page Down pan by what is seen; + and - zoom, 0 shows all; "
  + "Home and End go to the first and the last page; n and p find the next and the one before; Enter chooses the page.";

// What the kernel sent, ready to be drawn.
function mapOf(model) {
  const columns = {
    start: numbers(Float64Array, model.get("start")), kind: numbers(Uint8Array, model.get("kind")),
    offset: numbers(Float64Array, model.get("offset")),
  };
  const { pages, places } = model.get("places"), end = pages?.length ? pages[pages.length - 1] : 1;
  const linear = model.get("axis") === "linear" || !pages?.length;
  const page = (hexadecimal) => Number(BigInt(hexadecimal)) / PAGE;
  const lanes = model.get("lanes").map((lane) => new Lane(lane, columns, model.get("kinds")));
  return {
    lanes, fills: model.get("fills"), axis: linear ? new Axis([0, end], [0, end]) : new Axis(pages, places),
    e820: model.get("e820").map((entry) => ({ ...entry, from: page(entry.start), to: page(entry.end) })),
    vmm: model.get("vmm").length ? model.get("vmm").map(page) : null, lane: model.get("lane"), only: null,
  };
}

function button(words, onclick, more = {}) { return make("button", { type: "button", onclick, ...more }, words); }

function render({ model, el }) {
  el.classList.add("hvlab-view", "hvlab-pagemap");
  const mark = `hv-${Math.random().toString(36).slice(2)}`;
  const heading = make("h4"), legend = make("div", { class: "hv-bar", role: "group", "aria-label": "Show one permission only" });
  const canvas = make("canvas", { "aria-hidden": "true" });
  const marks = Object.fromEntries(["chosen", "hover", "cursor"].map((name) => [name, make("div", { class: `hv-${name}`, hidden: true })]));
  const stage = make("div", {
    class: "hv-stage", role: "application", tabindex: "0", "aria-roledescription": "page map", "aria-describedby": mark,
  }, canvas, ...Object.values(marks));
  const gutter = make("div", { class: "hv-gutter", role: "group", "aria-label": "Lanes" });
  const read = make("div", { class: "hv-said hv-number", role: "status" }, "Point at a page, or move the cursor with the arrow keys.");
  const scale = make("div", { class: "hv-quiet hv-number" });
  const help = make("details", { class: "hv-quiet" }, make("summary", {}, "Keys"), make("div", { id: mark }, KEYS));
  const surface = new Surface(canvas, el);
  let map = null, views = {}, selection = null, cursor = 0, frame = 0, width = 0, own = false, said = null;

  const grid = () => model.get("arrangement") === "grid";
  const view = () => views[model.get("arrangement")];
  const lane = () => map.lanes[map.lane];
  const bounded = (page) => Math.min(Math.max(Math.floor(page), 0), Math.max(map.axis.end - 1, 0));

  // --- controls

  const trait = (name, value, words) => button(words, () => { model.set(name, value); model.save_changes(); }, { "data-trait": name, "data-value": value });
  const search = make("select", { "aria-label": "What to find" }, ...Object.entries(SEARCHES).map(([key, words]) => make("option", { value: key }, words)));
  const showChosen = button("Show the selected address", () => { follow(selection.now(), true); });
  const arrangements = make("div", { class: "hv-group", role: "group", "aria-label": "Layout" }, trait("arrangement", "bands", "Bands"), trait("arrangement", "grid", "Grid"));
  const axes = make("div", { class: "hv-group", role: "group", "aria-label": "Axis" }, trait("axis", "compressed", "Gaps compressed"), trait("axis", "linear", "Linear"));
  const bar = make("div", { class: "hv-bar" }, arrangements, axes,
    make("div", { class: "hv-group", role: "group", "aria-label": "Zoom and pan" },
      button("\u2212", () => zoom(2), { "aria-label": "Zoom out" }), button("+", () => zoom(0.5), { "aria-label": "Zoom in" }),
      button("Whole", whole), button("\u25c0", () => pan(-0.5), { "aria-label": "Pan back" }), button("\u25b6", () => pan(0.5), { "aria-label": "Pan on" })),
    make("div", { class: "hv-group", role: "group", "aria-label": "Find" }, make("span", {}, "Find"), search,
      button("Previous (p)", () => find(-1)), button("Next (n)", () => find(1))),
    showChosen);
  el.append(heading, bar, legend, make("div", { class: "hv-map" }, gutter, stage), read, scale, help);

  function legendButtons() {
    const used = new Set([MIXED, ...map.lanes.flatMap((each) => Array.from(new Set(each.fills)).filter((fill) => fill && each.of(fill).length))]);
    legend.replaceChildren(...[...used].sort((a, b) => a - b).map((fill) => {
      const sample = make("canvas", { width: 44, height: 26, "aria-hidden": "true" });
      paintHatch(sample.getContext("2d"), map.fills[fill].colour, map.fills[fill].hatch, 44, 26, 2);
      const letters = map.fills[fill].letters;
      const words = letters === map.fills[fill].name ? letters : `${letters}: ${map.fills[fill].name}`;
      return button(sample, () => isolate(fill), { "aria-pressed": "false", "data-fill": fill, "data-words": words });
    }));
    for (const each of legend.children) each.append(each.dataset.words);
  }

  function laneButtons() {
    const above = make("span", { class: "hv-above" }, map.e820.length ? "E820" : "");
    gutter.replaceChildren(above, ...map.lanes.map((each, n) => button(each.name, () => useLane(n), { title: each.words })));
  }

  function pressed() {
    for (const each of bar.querySelectorAll("[data-trait]")) {
      each.setAttribute("aria-pressed", String(model.get(each.dataset.trait) === each.dataset.value));
    }
    for (const each of legend.children) each.setAttribute("aria-pressed", String(Number(each.dataset.fill) === map.only));
    [...gutter.querySelectorAll("button")].forEach((each, n) => each.setAttribute("aria-pressed", String(n === map.lane)));
    axes.hidden = model.get("arrangement") === "grid";
    showChosen.disabled = !selection || selection.now().address === null;
    el.classList.toggle("hv-rows", grid());
  }

  // --- drawing, once a frame at most

  function soon() { frame ||= requestAnimationFrame(draw); }

  function draw() {
    frame = 0;
    if (!map || !width) return;
    const first = !surface.width;
    if (!surface.colours) surface.theme();
    surface.resize(width, view().height());
    const started = performance.now();
    if (first) view().reveal(cursor);
    const { mixed, first: from, after } = view().draw();
    place(marks.cursor, view().where(map.lane, cursor));
    placeChosen();
    sayAgain();
    canvas.dataset.drawMs = (performance.now() - started).toFixed(3);
    Object.assign(canvas.dataset, { mixed, first: address(from), after: address(Math.ceil(after)), cursor: address(cursor) });
    scale.textContent = view().words();
  }

  function place(element, box) {
    element.hidden = !box;
    if (box) Object.assign(element.style, { left: `${box.x}px`, top: `${box.y}px`, width: `${box.width}px`, height: `${box.height}px` });
  }

  function placeChosen() {
    const page = chosenPage();
    const box = page === null ? null : view().where(model.get("arrangement") === "grid" ? map.lane : 0, page);
    if (box && view() === views.bands) Object.assign(box, { y: 0, height: surface.height - FOOT });
    place(marks.chosen, box);
  }

  function chosenPage() {
    const chosen = selection?.now().address ?? null;
    return chosen === null ? null : Number(BigInt(chosen) >> 12n);
  }

  // --- what is said of a page

  function say(n, page, aloud) {
    said = { n, page };
    read.setAttribute("aria-live", aloud ? "polite" : "off");
    sayAgain();
  }

  // The same page after a change of view, for what one pixel holds may be another thing then.
  function sayAgain() {
    const words = said && map.lanes[said.n] ? told(map, map.lanes[said.n], said.page, ...view().pixel(said.page)) : null;
    if (words && words !== read.textContent) read.textContent = words;
  }

  function sayNone(words) {
    said = null;
    read.setAttribute("aria-live", "polite");
    read.textContent = words;
  }

  function summary() {
    stage.setAttribute("aria-label", `${model.get("label")}: ${model.get("words")}`);
    heading.textContent = model.get("label");
  }

  // --- doing

  function go(page) {
    cursor = bounded(page);
    view().reveal(cursor);
    if (lane()) say(map.lane, cursor, true);
    soon();
  }

  function useLane(n) {
    map.lane = Math.min(Math.max(n, 0), map.lanes.length - 1);
    if (model.get("lane") !== map.lane) { model.set("lane", map.lane); model.save_changes(); }
    pressed();
    go(cursor);
  }

  function zoom(factor, page = cursor) { view().zoom(factor, page); soon(); }

  function pan(part) { view().pan(part); soon(); }

  function whole() { view().whole(); soon(); }

  function isolate(fill) {
    map.only = map.only === fill ? null : fill;
    pressed();
    soon();
  }

  function find(direction) {
    if (!lane()) return;
    const page = search.value === "mixed" ? nextMixed(view(), lane(), cursor, direction) : nextPiece(map, lane(), cursor, direction, search.value);
    if (page !== null) { go(page); return; }
    sayNone(`${lane().name}: no ${direction > 0 ? "further" : "earlier"} ${SEARCHES[search.value]}`);
  }

  function choose() {
    if (!lane() || !selection) return;
    own = true;
    say(map.lane, cursor, true);
    selection.choose({ address: address(cursor), space: lane().space, domain: lane().keys[0] ?? "" });
  }

  // Another view chose: its page is marked and comes into view, in the lane of its domain.
  function follow(chosen, near = false) {
    if (!map) return;
    const page = chosenPage(), spoken = said?.n === map.lane && said.page === cursor;
    if (page !== null && page < map.axis.end && (!own || near)) {
      const n = map.lanes.findIndex((each) => chosen.domain && each.keys.includes(chosen.domain));
      if (n >= 0 && !lane()?.keys.includes(chosen.domain)) map.lane = n;
      cursor = page;
      if (surface.width) view().reveal(page, near);
      if (near || spoken) say(map.lane, cursor, near);
    }
    own = false;
    pressed();
    soon();
  }

  // --- pointer

  let dragged = null;

  function point(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  function hover(event) {
    const started = performance.now(), found = view().find(...point(event));
    marks.hover.hidden = !found;
    if (!found) return;
    place(marks.hover, view().where(found.lane, found.page));
    say(found.lane, found.page, false);
    canvas.dataset.hoverMs = (performance.now() - started).toFixed(3);
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    dragged = { at: point(event), page: view().page, far: false };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!dragged) { hover(event); return; }
    const [x, y] = point(event), dx = x - dragged.at[0], dy = y - dragged.at[1];
    dragged.far ||= Math.hypot(dx, dy) > 4;
    if (dragged.far) { view().drag(dragged.page, dx, dy); soon(); }
  });
  stage.addEventListener("pointerup", (event) => {
    const found = dragged && !dragged.far && view().find(...point(event));
    dragged = null;
    if (!found) return;
    cursor = found.page;
    useLane(found.lane);
    choose();
  });
  stage.addEventListener("pointercancel", () => { dragged = null; });
  stage.addEventListener("pointerleave", () => { marks.hover.hidden = true; });
  // A notebook is scrolled by the wheel too: it zooms the map that is in use, or with Ctrl.
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== stage) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.5 : 2, view().find(...point(event))?.page ?? cursor);
  }, { passive: false });

  // --- keyboard

  const actions = {
    "ArrowRight": () => go(view().step(cursor, 1)), "ArrowLeft": () => go(view().step(cursor, -1)),
    "ArrowDown": () => grid() ? go(cursor + views.grid.row) : useLane(map.lane + 1),
    "ArrowUp": () => grid() ? go(cursor - views.grid.row) : useLane(map.lane - 1),
    "Shift ArrowRight": () => pan(0.25), "Shift ArrowLeft": () => pan(-0.25),
    "Shift ArrowDown": () => pan(0.25), "Shift ArrowUp": () => pan(-0.25),
    "PageDown": () => pan(0.9), "PageUp": () => pan(-0.9), "Home": () => go(0), "End": () => go(map.axis.end - 1),
    "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "0": whole, "n": () => find(1), "p": () => find(-1),
    "Enter": choose, " ": choose,
  };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !map.lanes.length) return;
    const shifted = event.shiftKey && event.key.startsWith("Arrow") ? `Shift ${event.key}` : event.key;
    if (!actions[shifted]) return;
    event.preventDefault();
    actions[shifted]();
  });
  keepKeys(el);

  // --- what comes from outside

  function load() {
    const last = map;
    map = mapOf(model);
    map.only = last?.only ?? null;
    if (views.bands) Object.values(views).forEach((each) => { each.map = map; });
    if (views.bands && last.axis.length !== map.axis.length) views.bands.page = views.bands.scale = 0;
    if (!views.bands) views = { bands: new Bands(map, surface), grid: new Grid(map, surface) };
    const compares = map.fills.some((fill, n) => CHANGES.includes(fill.key) && map.lanes.some((each) => each.of(n).length));
    if (!last && compares) search.value = "difference";
    cursor = bounded(cursor);
    surface.use(map.fills);
    legendButtons();
    laneButtons();
    arrange();
    summary();
  }

  function arrange() {
    pressed();
    draw();
  }

  let waiting = false;
  const reload = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; load(); });
  };
  const content = ["start", "kind", "offset", "lanes", "kinds", "fills", "places", "e820", "vmm", "axis", "label", "words"];
  const offContent = onChange(model, content, reload);
  const offLayout = onChange(model, ["arrangement"], () => { if (map) arrange(); });
  const offLane = onChange(model, ["lane"], () => { if (map && map.lane !== model.get("lane")) useLane(model.get("lane")); });
  // The width as it was last laid out; none where the view is not on the page or hidden.
  const resized = new ResizeObserver((entries) => {
    width = Math.floor(entries[entries.length - 1].contentRect.width);
    soon();
  });
  resized.observe(stage);
  const themed = new MutationObserver(() => { surface.theme(); soon(); });
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light", "class"] });

  const leave = withSelection(model, (shared) => { selection = shared; }, (chosen) => follow(chosen));
  return () => {
    [offContent, offLayout, offLane, leave].forEach((undo) => undo());
    resized.disconnect();
    themed.disconnect();
    cancelAnimationFrame(frame);
  };
}

// The next piece of a lane that is searched for, from a page on in a direction; its first page, or null.
function nextPiece(map, lane, page, direction, search) {
  const i = lane.at(page), last = lane.start.length - 1;
  const start = (n) => n >= 0 && n <= last && lane.start[n] < map.axis.end ? lane.start[n] : null;
  if (search === "boundary") return start(direction > 0 ? i + 1 : lane.start[i] < page ? i : i - 1);
  const wanted = search === "write" ? WRITABLE : DIFFERENT;
  const found = map.fills.flatMap((fill, n) => {
    if (!wanted.includes(fill.key)) return [];
    const list = lane.of(n), at = direction > 0 ? upTo(list, i) : before(list, i) - 1;
    return at >= 0 && at < list.length ? [list[at]] : [];
  });
  return found.length ? start(direction > 0 ? Math.min(...found) : Math.max(...found)) : null;
}

// The next pixel, as pixels are now, in which several things lie; the border in it, or null.
function nextMixed(view, lane, page, direction) {
  const { start } = lane;
  let [a, b] = view.pixel(page);
  let i = direction > 0 ? before(start, b) : before(start, a) - 1;
  while (i > 0 && i < start.length) {
    [a, b] = view.pixel(start[i]);
    const here = lane.among(a, b);
    if (!lane.alike(here.i, here.j)) return start[i];
    i = direction > 0 ? Math.max(i + 1, before(start, b)) : Math.min(i, before(start, a)) - 1;
  }
  return null;
}

export default { render };
