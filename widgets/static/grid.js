// The page map as a grid: one lane row by row, each cell 2^k pages; so one page among 2^28 has a cell of its own to show up in.

const INSET = 104, CELL = 3, LEAST_COLUMNS = 8, CELL_HEIGHT = 24, GRID_HEIGHT = 420;

class Grid {
  constructor(map, surface) {
    this.map = map;
    this.surface = surface;
    this.page = 0;
    this.level = 0;
  }

  get lane() { return this.map.lanes[this.map.lane]; }

  get width() { return this.surface.width - INSET; }

  // The page after the last one that the lane has anything to say of.
  get end() { return Math.max(this.lane ? this.lane.start[this.lane.start.length - 1] : 0, 1); }

  height() { return GRID_HEIGHT; }

  // Columns, the pages of a cell and its size in device pixels, as they follow from size and level.
  measure() {
    const { dpr } = this.surface, wide = this.width * dpr, high = this.surface.canvas.height;
    const most = 2 ** Math.max(3, Math.floor(Math.log2(this.width / CELL)));
    const cells = most * Math.floor(high / Math.floor(wide / most));
    this.coarsest = Math.max(0, Math.ceil(Math.log2(this.end / cells)));
    this.deepest = this.coarsest + Math.log2(most / LEAST_COLUMNS);
    this.level = Math.min(Math.max(this.level, 0), this.deepest);
    this.each = 2 ** Math.max(0, this.coarsest - this.level);
    this.columns = most / 2 ** Math.max(0, this.level - this.coarsest);
    this.cell = Math.floor(wide / this.columns);
    const roomy = Math.floor(high / Math.ceil(this.end / this.row));
    this.tall = Math.min(Math.max(this.cell, roomy), Math.round(CELL_HEIGHT * dpr));
    this.rows = Math.max(1, Math.floor(high / this.tall));
  }

  get row() { return this.columns * this.each; }

  fit() {
    this.measure();
    const rows = Math.ceil(this.end / this.row);
    const first = Math.min(Math.floor(this.page / this.row), rows - this.rows);
    this.page = Math.max(0, first) * this.row;
  }

  whole() {
    this.level = 0;
    this.fit();
  }

  zoom(factor, page) {
    const row = Math.min(Math.max(Math.floor((page - this.page) / this.row), 0), this.rows - 1) / this.rows;
    this.level += factor < 1 ? 1 : -1;
    this.measure();
    this.page = (Math.floor(page / this.row) - Math.round(row * this.rows)) * this.row;
    this.fit();
  }

  pan(part) {
    this.page += Math.round(part * this.rows) * this.row;
    this.fit();
  }

  drag(from, _dx, dy) {
    this.page = from - Math.round(dy * this.surface.dpr / this.tall) * this.row;
    this.fit();
  }

  reveal(page, near = false) {
    if (near) this.level = this.coarsest + 2;
    this.fit();
    if (page < this.page || page >= this.page + this.rows * this.row || near) {
      this.page = (Math.floor(page / this.row) - Math.floor(this.rows / 2)) * this.row;
    }
    this.fit();
  }

  step(page, direction) { return (Math.floor(page / this.each) + direction) * this.each; }

  pixel(page) {
    const a = Math.floor(page / this.each) * this.each;
    return [a, a + this.each];
  }

  find(x, y) {
    const { dpr } = this.surface;
    const column = Math.floor((x - INSET) * dpr / this.cell), row = Math.floor(y * dpr / this.tall);
    const page = this.page + row * this.row + column * this.each;
    const inside = column >= 0 && column < this.columns && row >= 0 && row < this.rows && page < this.end;
    return inside ? { lane: this.map.lane, page } : null;
  }

  where(lane, page) {
    const n = Math.floor((page - this.page) / this.each), { dpr } = this.surface;
    if (lane !== this.map.lane || n < 0 || n >= this.columns * this.rows) return null;
    return { x: INSET + n % this.columns * this.cell / dpr, y: Math.floor(n / this.columns) * this.tall / dpr,
      width: this.cell / dpr, height: this.tall / dpr };
  }

  draw() {
    const { surface, map } = this;
    this.fit();
    const count = Math.min(this.columns * this.rows, Math.ceil((this.end - this.page) / this.each));
    if (this.edges?.length !== this.columns * this.rows + 1) {
      this.edges = new Float64Array(this.columns * this.rows + 1);
      this.shades = new Uint8Array(this.columns * this.rows);
      this.line = new Uint8Array(this.columns * this.cell);
    }
    for (let n = 0; n <= count; n += 1) this.edges[n] = this.page + n * this.each;
    surface.clear();
    this.lane?.shades(this.edges, count, map.only, this.shades);
    this.paint(count);
    surface.show();
    this.rims(count);
    this.labels();
    const mixed = this.shades.subarray(0, count).reduce((sum, shade) => sum + (shade === MIXED), 0);
    if (mixed <= FEW) this.rings(count);
    if (this.cell / surface.dpr > 84) this.spell(count);
    return { mixed, first: this.page, after: Math.min(this.page + count * this.each, this.end) };
  }

  paint(count) {
    const left = Math.round(INSET * this.surface.dpr);
    if (this.line.length !== this.columns * this.cell) this.line = new Uint8Array(this.columns * this.cell);
    for (let row = 0; row * this.columns < count; row += 1) {
      const cells = Math.min(this.columns, count - row * this.columns);
      for (let x = 0; x < cells; x += 1) {
        this.line.fill(this.shades[row * this.columns + x], x * this.cell, (x + 1) * this.cell);
      }
      this.surface.strip(this.line, cells * this.cell, left, row * this.tall, this.tall);
    }
  }

  // The edge of the whole, and lines between cells that are large enough to have some.
  rims(count) {
    const { surface } = this, { dpr } = surface, rows = Math.ceil(count / this.columns);
    const right = INSET + this.columns * this.cell / dpr, bottom = rows * this.tall / dpr;
    if (this.cell / dpr >= 10) {
      for (let row = 1; row < rows; row += 1) surface.line(INSET, row * this.tall / dpr, right, row * this.tall / dpr, { colour: surface.colours.back });
      for (let x = 1; x < this.columns; x += 1) surface.line(INSET + x * this.cell / dpr, 0, INSET + x * this.cell / dpr, bottom, { colour: surface.colours.back });
    }
    surface.frame(INSET, 0.5, right - INSET, bottom - 1, { thick: 1, colour: surface.colours.line });
  }

  // The address at which every so many rows begin.
  labels() {
    const { surface } = this, pitch = this.tall / surface.dpr, every = 2 ** Math.max(0, Math.ceil(Math.log2(18 / pitch)));
    for (let row = 0; row < this.rows; row += 1) {
      const page = this.page + row * this.row;
      if (page >= this.end || (page / this.row) % every) continue;
      surface.text(address(page), INSET - 8, Math.max(row * pitch + Math.min(pitch, 18) / 2 + 4, 10), { align: "right" });
    }
  }

  rings(count) {
    const { dpr } = this.surface;
    for (let n = 0; n < count; n += 1) {
      if (this.shades[n] !== MIXED) continue;
      const x = INSET + (n % this.columns + 0.5) * this.cell / dpr, y = (Math.floor(n / this.columns) + 0.5) * this.tall / dpr;
      this.surface.ring(x, y, Math.max(7, this.cell / dpr));
    }
  }

  spell(count) {
    const { dpr } = this.surface;
    for (let n = 0; n < count; n += 1) {
      const page = this.edges[n], { letters } = this.map.fills[this.lane.fill(this.lane.at(page))];
      const x = INSET + (n % this.columns + 0.5) * this.cell / dpr, y = (Math.floor(n / this.columns) + 0.5) * this.tall / dpr;
      if (!this.surface.badge(`${address(page)} ${letters}`, x, y, this.cell / dpr)) this.surface.badge(letters, x, y, this.cell / dpr);
    }
  }

  words() {
    const after = Math.min(this.page + this.rows * this.row, this.end);
    return `${address(this.page)}-${address(after)}; each cell: ${pagesWords(this.each)}, each row: ${size(this.row * PAGE)}`;
  }
}
