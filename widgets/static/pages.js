// Pages by the hundred million: lanes as sorted pieces, found by halving and never one by one; and the axis they are laid out on.

const PAGE = 4096;
const NOTHING = 0, MIXED = 1;
// A shade beyond all fills: what is not the one permission that is looked at.
const DIM = 255;

const address = (page) => hex(Math.max(0, Math.floor(page)) * PAGE);

// Bytes of the kernel as numbers, in place where they lie so that they can be.
function numbers(Type, bytes) {
  const { buffer, byteOffset, byteLength } = bytes;
  if (byteOffset % Type.BYTES_PER_ELEMENT === 0) return new Type(buffer, byteOffset, byteLength / Type.BYTES_PER_ELEMENT);
  return new Type(buffer.slice(byteOffset, byteOffset + byteLength));
}

// How many entries of an ascending array lie before `value`.
function before(array, value, low = 0, high = array.length) {
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (array[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// How many lie at `value` or before it.
function upTo(array, value) {
  const n = before(array, value);
  return n < array.length && array[n] === value ? n + 1 : n;
}

// One lane: piece i holds the pages from start[i] up to start[i + 1], the last one all that follow.
class Lane {
  constructor(told, columns, kinds) {
    const cut = (column) => column.length ? column.subarray(told.first, told.first + told.count) : column;
    Object.assign(this, told);
    this.start = cut(columns.start);
    this.kind = cut(columns.kind);
    this.offset = cut(columns.offset);
    this.kinds = kinds;
    this.fills = Uint8Array.from(kinds, (kind) => kind.fill);
    this.lists = null;
  }

  fill(i) { return this.fills[this.kind[i]]; }

  says(i) { return this.kinds[this.kind[i]].words; }

  // Pages by which the piece leads elsewhere.
  moved(i) { return this.offset.length ? this.offset[i] : 0; }

  end(i) { return i + 1 < this.start.length ? this.start[i + 1] : Infinity; }

  // The piece that holds a page.
  at(page) { return Math.max(upTo(this.start, page) - 1, 0); }

  // The last piece from i on that starts before a page; near ones are found at once.
  lastBefore(page, i) {
    const { start } = this;
    let low = i, step = 1;
    while (low + step < start.length && start[low + step] < page) { low += step; step *= 2; }
    return before(start, page, low, Math.min(low + step, start.length)) - 1;
  }

  // The pieces of each fill, ascending; made once, when they are first asked for.
  of(fill) {
    if (!this.lists) {
      const counts = new Uint32Array(256), filled = new Uint32Array(256);
      for (let i = 0; i < this.start.length; i += 1) counts[this.fill(i)] += 1;
      this.lists = Array.from(counts, (count) => new Uint32Array(count));
      for (let i = 0; i < this.start.length; i += 1) this.lists[this.fill(i)][filled[this.fill(i)]++] = i;
    }
    return this.lists[fill];
  }

  // How many of the pieces i to j have a fill.
  countOf(fill, i, j) {
    if (j - i < 16) {
      let found = 0;
      for (let k = i; k <= j; k += 1) found += this.fill(k) === fill;
      return found;
    }
    const list = this.of(fill);
    return before(list, j + 1) - before(list, i);
  }

  alike(i, j) { return i === j || this.countOf(this.fill(i), i, j) === j - i + 1; }

  // What is drawn for the pieces i to j together; with `only`, what it is to one who looks for that fill.
  shade(i, j, only) {
    const alike = this.alike(i, j), fill = alike ? this.fill(i) : MIXED;
    if (only === null || fill === only || fill === NOTHING) return fill;
    return !alike && only !== MIXED && this.countOf(only, i, j) ? MIXED : DIM;
  }

  // The shades of `count` neighbouring pixels, of which pixel x reaches from edges[x] up to edges[x + 1].
  shades(edges, count, only, out) {
    const { start } = this;
    let i = this.at(edges[0]);
    for (let x = 0; x < count; x += 1) {
      const j = Math.max(i, this.lastBefore(edges[x + 1], i));
      out[x] = i === j && only === null ? this.fill(i) : this.shade(i, j, only);
      i = j + 1 < start.length && start[j + 1] <= edges[x + 1] ? j + 1 : j;
    }
  }

  // The fills among the pages from a up to b.
  among(a, b) {
    const i = this.at(a), j = Math.max(i, this.lastBefore(b, i));
    const found = [];
    for (let fill = 0; fill < DIM; fill += 1) if (this.countOf(fill, i, j)) found.push(fill);
    return { i, j, found };
  }
}

// An axis: `places` at `pages`, in proportion between them.
class Axis {
  constructor(pages, places) {
    this.pages = pages;
    this.places = places;
    this.end = pages[pages.length - 1];
    this.length = places[places.length - 1];
  }

  segment(page) { return Math.min(Math.max(upTo(this.pages, page) - 1, 0), this.pages.length - 2); }

  // Places to a page, near a page.
  slope(segment) {
    return (this.places[segment + 1] - this.places[segment]) / (this.pages[segment + 1] - this.pages[segment]);
  }

  place(page) {
    const s = this.segment(page);
    return this.places[s] + (page - this.pages[s]) * this.slope(s);
  }

  // From one page to another in places; exact also far out, where a place by itself would be rounded.
  distance(from, to) {
    const s = this.segment(from);
    return s === this.segment(to) ? (to - from) * this.slope(s) : this.place(to) - this.place(from);
  }

  // The page that lies `places` after one.
  advance(page, places) {
    let s = this.segment(page);
    while (places > 0 && s < this.pages.length - 2 && (this.pages[s + 1] - page) * this.slope(s) <= places) {
      places -= (this.pages[s + 1] - page) * this.slope(s);
      s += 1;
      page = this.pages[s];
    }
    while (places < 0 && s > 0 && (this.pages[s] - page) * this.slope(s) >= places) {
      places -= (this.pages[s] - page) * this.slope(s);
      page = this.pages[s];
      s -= 1;
    }
    return page + places / this.slope(s);
  }

  // The edges of `count` pixels from a page on, each `step` places wide.
  edges(page, step, count, out) {
    let s = this.segment(page), from = page, first = 0;
    for (let x = 0; x <= count; x += 1) {
      out[x] = from + (x - first) * step / this.slope(s);
      while (s < this.pages.length - 2 && out[x] >= this.pages[s + 1]) {
        const beyond = (out[x] - this.pages[s + 1]) * this.slope(s);
        s += 1;
        first = x - beyond / step;
        from = this.pages[s];
        out[x] = from + beyond / this.slope(s);
      }
    }
  }
}

// The roundest page number between two, for a label.
function roundest(low, high) {
  for (let unit = 2 ** Math.max(0, Math.ceil(Math.log2(high + 1))); unit >= 1; unit /= 2) {
    const page = Math.ceil(low / unit) * unit;
    if (page <= high) return page;
  }
  return null;
}

// Pages in words.
const pagesWords = (pages) => `${pages.toLocaleString("en")} page${pages === 1 ? "" : "s"} (${size(pages * PAGE)})`;

// What a lane has at a page, and among the pages from a up to b that one pixel shows.
function told(map, lane, page, a, b) {
  const i = lane.at(page), first = lane.start[i], after = Math.min(lane.end(i), map.axis.end);
  const words = [`${lane.name}: ${address(page)}`];
  const here = lane.among(a, b);
  if (here.i !== here.j && !lane.alike(here.i, here.j)) {
    words.push(`several in this pixel: ${here.found.map((fill) => map.fills[fill].name).join(", ")}; zoom in`);
  }
  words.push(`${lane.says(i)}, ${address(first)}-${address(after)}, ${pagesWords(after - first)}`);
  if (lane.moved(i)) words.push(`leads to host-physical ${address(leads(map, lane, i, page))}`);
  if (map.vmm && map.vmm[0] <= leads(map, lane, i, page) && leads(map, lane, i, page) < map.vmm[1]) words.push("the VMM's memory");
  const entry = map.e820.find((e) => e.from <= page && page < e.to);
  words.push(`E820 ${entry ? entry.words : "has nothing here"}`);
  return words.join(" \u00b7 ");
}

// The host-physical page that a mapped page leads to.
function leads(map, lane, i, page) {
  const one = map.fills[lane.fill(i)].key === "one page";
  return (one ? lane.start[i] : Math.floor(page)) + lane.moved(i);
}
