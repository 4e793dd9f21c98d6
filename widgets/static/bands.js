// The page map in bands: every lane is a horizontal band over one axis of addresses, the memory map above them.

const TOP = 50, BAND = 30, PITCH = 44, FOOT = 34, MAP_TOP = 22, MAP_HEIGHT = 15;
// Widest that one page is drawn, in CSS pixels.
const WIDEST = 160;
const FEW = 64;

class Bands {
  constructor(map, surface) {
    this.map = map;
    this.surface = surface;
    this.page = 0;
    this.scale = 0;
    this.seen = 0;
  }

  get axis() { return this.map.axis; }

  get width() { return this.surface.width; }

  height() { return TOP + PITCH * Math.max(this.map.lanes.length, 1) + FOOT; }

  top(lane) { return TOP + PITCH * lane; }

  // Places to a CSS pixel at most and, near a page, at least.
  get most() { return this.axis.length / this.width; }

  least(page) { return this.axis.slope(this.axis.segment(page)) / WIDEST; }

  // Keeps the view within the axis, and at another width on the same pages.
  fit() {
    if (this.scale && this.seen !== this.width) this.scale *= this.seen / this.width;
    this.seen = this.width;
    if (!this.scale || this.scale > this.most) this.scale = this.most;
    if (this.axis.distance(this.page, this.axis.end) < this.width * this.scale) {
      this.page = this.axis.advance(this.axis.end, -this.width * this.scale);
    }
    if (!(this.page > 0)) this.page = 0;
  }

  whole() {
    this.scale = 0;
    this.page = 0;
    this.fit();
  }

  pageAt(x) { return this.axis.advance(this.page, x * this.scale); }

  x(page) { return this.axis.distance(this.page, page) / this.scale; }

  zoom(factor, page) {
    const seen = this.x(page), x = seen >= 0 && seen < this.width ? seen : this.width / 2;
    this.scale = Math.min(Math.max(this.scale * factor, this.least(page)), this.most);
    this.page = this.axis.advance(page, -x * this.scale);
    this.fit();
  }

  // Moves on by a part of what is seen.
  pan(part) {
    this.page = this.pageAt(part * this.width);
    this.fit();
  }

  drag(from, dx) {
    this.page = this.axis.advance(from, -dx * this.scale);
    this.fit();
  }

  // Brings a page into view; `near` so that it is many pixels.
  reveal(page, near = false) {
    if (near) this.scale = this.axis.slope(this.axis.segment(page)) / 24;
    const x = this.x(page);
    if (near || x < 0 || x > this.width - 2) this.page = this.axis.advance(page, -this.scale * this.width / 2);
    this.fit();
  }

  // The page to which the cursor goes one step left or right.
  step(page, direction) {
    const there = Math.floor(this.axis.advance(page, direction * 8 * this.scale));
    return direction > 0 ? Math.max(there, page + 1) : Math.min(there, page - 1);
  }

  // What the pixel that holds a page shows: from page a up to page b.
  pixel(page) {
    const pixel = this.scale / this.surface.dpr;
    if (this.axis.distance(page, page + 1) >= pixel) return [page, page + 1];
    const x = Math.floor(this.axis.distance(this.page, page) / pixel + 1e-9);
    const a = this.axis.advance(this.page, x * pixel), b = this.axis.advance(this.page, (x + 1) * pixel);
    return [a, b];
  }

  // Lane and page under a point of the canvas.
  find(x, y) {
    const lane = Math.floor((y - TOP + (PITCH - BAND) / 2) / PITCH);
    const page = Math.floor(this.pageAt(x));
    return lane >= 0 && lane < this.map.lanes.length && page >= 0 && page < this.axis.end ? { lane, page } : null;
  }

  // Where a page of a lane is drawn, as far as it is in view.
  where(lane, page) {
    const left = this.x(page), right = this.x(page + 1);
    if (right < 0 || left > this.width) return null;
    return { x: left, y: this.top(lane) - 3, width: Math.max(right - left, 1), height: BAND + 6 };
  }

  draw() {
    const { surface, map } = this, count = surface.canvas.width;
    this.fit();
    if (this.edges?.length !== count + 1) {
      this.edges = new Float64Array(count + 1);
      this.shades = map.lanes.map(() => new Uint8Array(count));
    }
    while (this.shades.length < map.lanes.length) this.shades.push(new Uint8Array(count));
    this.axis.edges(this.page, this.scale / surface.dpr, count, this.edges);
    if (this.edges[1] - this.edges[0] < 1) sharpen(this.edges);
    surface.clear();
    map.lanes.forEach((lane, n) => this.shade(lane, n, count));
    surface.show();
    map.lanes.forEach((lane, n) => this.label(lane, n, count));
    this.above();
    this.ticks();
    return { mixed: this.mixed, first: this.page, after: Math.min(this.pageAt(this.width), this.axis.end) };
  }

  shade(lane, n, count) {
    const { dpr } = this.surface;
    if (n === 0) this.mixed = 0;
    lane.shades(this.edges, count, this.map.only, this.shades[n]);
    this.surface.strip(this.shades[n], count, 0, Math.round(this.top(n) * dpr), Math.round(BAND * dpr));
  }

  label(lane, n, count) {
    const { surface } = this, middle = this.top(n) + BAND / 2, { dpr } = surface;
    surface.line(0, middle, this.width, middle, { dash: [3, 3], under: true });
    if (lane.words === "nothing") surface.text("empty", 8, middle - 3);
    const parts = stretches(this.shades[n], count);
    const specks = parts.filter(([shade, a, b], i) => shade === MIXED && b - a <= 2 && parts[i - 1]?.[0] === parts[i + 1]?.[0]);
    for (const [shade, a, b] of parts) {
      if (shade === MIXED) this.mixed += b - a;
      const words = this.map.fills[shade]?.letters;
      if (words && !this.spelled) surface.badge(words, (a + b) / 2 / dpr, middle, (b - a) / dpr - 6);
    }
    if (specks.length <= FEW) for (const [, a, b] of specks) surface.ring((a + b) / 2 / dpr, this.top(n) - 5, 3.5);
    if (this.spelled) this.spell(lane, n);
  }

  // Whether pages are so wide that there is room to say of each where it leads.
  get spelled() { return this.x(Math.floor(this.page) + 2) - this.x(Math.floor(this.page) + 1) > 84; }

  spell(lane, n) {
    const { surface } = this, after = Math.min(this.pageAt(this.width), this.axis.end);
    for (let page = Math.floor(this.page); page < after; page += 1) {
      const i = lane.at(page), left = this.x(page), right = this.x(page + 1);
      surface.line(left, this.top(n), left, this.top(n) + BAND, { colour: surface.colours.text });
      const { letters } = this.map.fills[lane.fill(i)];
      if (!letters) continue;
      const middle = (left + right) / 2, y = this.top(n) + BAND / 2, to = address(leads(this.map, lane, i, page));
      if (!surface.badge(`${letters} \u2192 ${to}`, middle, y, right - left)) surface.badge(letters, middle, y, right - left);
    }
  }

  // The memory map, and the range of the VMM across all lanes.
  above() {
    const { surface, map } = this, bottom = this.top(map.lanes.length) - (PITCH - BAND) / 2;
    for (const entry of map.e820) {
      const x = Math.max(this.x(entry.from), 0), end = Math.min(this.x(entry.to), this.width);
      if (end < 0 || x > this.width) continue;
      surface.block(x, MAP_TOP, Math.max(end - x, 1), MAP_HEIGHT, entry);
      surface.badge(entry.words, (x + end) / 2, MAP_TOP + MAP_HEIGHT / 2, end - x - 6);
    }
    if (!map.vmm) return;
    const [x, end] = map.vmm.map((page) => Math.min(Math.max(this.x(page), -4), this.width + 4));
    if (end < 0 || x > this.width) return;
    surface.frame(x, MAP_TOP - 4, Math.max(end - x, 2), bottom - MAP_TOP + 4, { dash: [5, 3] });
    surface.text("VMM", (Math.max(x, 16) + Math.min(end, this.width - 16)) / 2, MAP_TOP - 9, { align: "center", bold: true });
  }

  // Addresses below the lanes, as round as they can be where there is room.
  ticks() {
    const { surface } = this, y = this.top(this.map.lanes.length) - 4, room = 96;
    surface.line(0, y, this.width, y, { colour: surface.colours.quiet });
    const start = Math.max(this.page, 0);
    let taken = -Infinity;
    for (let x = 0; x < this.width; x += room / 2) {
      const page = roundest(x ? this.pageAt(x) : start, Math.min(this.pageAt(x + room / 2), this.axis.end));
      const at = page === null ? -1 : this.x(page), half = 4 + 3.6 * address(page ?? 0).length;
      const middle = Math.min(Math.max(at, half), this.width - half);
      if (at < 0 || middle - half < taken) continue;
      taken = middle + half;
      surface.line(at, y, at, y + 6, { colour: surface.colours.quiet });
      surface.text(address(page), middle, y + 18, { align: "center" });
    }
  }

  // What one pixel stands for, in words.
  words() {
    const pages = this.edges[1] - this.edges[0];
    const [first, after] = [this.page, Math.min(this.pageAt(this.width), this.axis.end)];
    const each = pages < 1 ? `one page is ${Math.round(1 / pages / this.surface.dpr)} pixels wide` :
      `one pixel at the left: ${pagesWords(Math.round(pages))}`;
    return `${address(first)}-${address(Math.ceil(after))}; ${each}`;
  }
}

// Where a page is several pixels each pixel belongs to one page: the one at its middle.
function sharpen(edges) {
  for (let x = 0; x + 1 < edges.length; x += 1) {
    if (edges[x + 1] - edges[x] < 1 && Math.floor(edges[x]) !== Math.floor(edges[x + 1])) {
      const border = Math.floor(edges[x + 1]);
      if (border - edges[x] < edges[x + 1] - border) edges[x] = border;
      else edges[x + 1] = border;
    }
  }
}
