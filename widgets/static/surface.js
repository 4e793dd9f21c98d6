// The canvas of the page map: pixels that are computed, with lines and words on top.

const HATCH = 8;

class Surface {
  constructor(canvas, host) {
    this.canvas = canvas;
    this.host = host;
    this.context = canvas.getContext("2d");
    this.fills = [];
  }

  // Size in CSS pixels; returns whether it changed.
  resize(width, height) {
    const dpr = window.devicePixelRatio || 1;
    if (this.width === width && this.height === height && this.dpr === dpr) return false;
    Object.assign(this, { width, height, dpr });
    this.canvas.width = Math.max(1, Math.round(width * dpr));
    this.canvas.height = Math.max(1, Math.round(height * dpr));
    this.canvas.style.height = `${height}px`;
    this.image = this.context.createImageData(this.canvas.width, this.canvas.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.paintTiles();
    return true;
  }

  // The page's colours as they are now.
  theme() {
    const style = getComputedStyle(this.host);
    const colour = (name, otherwise) => style.getPropertyValue(name).trim() || otherwise;
    this.colours = {
      text: colour("--jp-ui-font-color1", "#222"), quiet: colour("--jp-ui-font-color2", "#555"), line: colour("--jp-border-color0", "#999"),
      back: colour("--jp-layout-color1", "#fff"), dim: colour("--jp-layout-color3", "#ddd"),
    };
    this.font = colour("--jp-ui-font-family", "system-ui, sans-serif");
    this.paintTiles();
  }

  use(fills) {
    this.fills = fills;
    this.paintTiles();
  }

  // One tile of each fill as pixels; from them every shaded pixel is copied.
  paintTiles() {
    if (!this.dpr || !this.colours) return;
    this.tile = Math.round(HATCH * this.dpr);
    this.tiles = new Uint32Array((DIM + 1) * this.tile ** 2);
    this.fills.forEach((fill, n) => this.keepTile(n, fill.colour, fill.hatch));
    this.keepTile(DIM, this.colours.dim, "");
  }

  keepTile(n, colour, hatch) {
    if (!colour) return;
    const canvas = make("canvas", { width: this.tile, height: this.tile });
    paintHatch(canvas.getContext("2d"), colour, hatch, this.tile, this.tile, this.tile / HATCH);
    const { data } = canvas.getContext("2d").getImageData(0, 0, this.tile, this.tile);
    this.tiles.set(new Uint32Array(data.buffer), n * this.tile ** 2);
  }

  clear() { this.pixels.fill(0); }

  // A strip of shades, `height` device pixels high, at device pixel (left, top).
  strip(shades, count, left, top, height) {
    const { pixels, tile, tiles } = this, width = this.canvas.width, area = tile * tile;
    const high = Math.min(height, this.canvas.height - top), wide = Math.min(count, width - left);
    for (let y = 0; y < high; y += 1) {
      const to = (top + y) * width + left;
      if (y >= tile) { pixels.copyWithin(to, to - tile * width, to - tile * width + wide); continue; }
      const row = ((top + y) % tile) * tile;
      for (let x = 0; x < wide; x += 1) pixels[to + x] = tiles[shades[x] * area + row + (left + x) % tile];
    }
  }

  // The computed pixels go to the screen; what is drawn after that is in CSS pixels.
  show() {
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.putImageData(this.image, 0, 0);
    this.context.setTransform(this.dpr, 0, 0, this.dpr, 0, 0);
  }

  text(words, x, y, { align = "left", colour = this.colours.text, size: points = 11, bold = false } = {}) {
    const { context } = this;
    context.font = `${bold ? "600 " : ""}${points}px ${this.font}`;
    context.textAlign = align;
    context.fillStyle = colour;
    context.fillText(words, x, y);
  }

  // Words that stay readable on any hatching; `x` is their middle.  Returns whether there was room for them.
  badge(words, x, y, room) {
    const { context } = this;
    context.font = `11px ${this.font}`;
    const width = context.measureText(words).width + 8;
    if (width > room) return false;
    context.fillStyle = "rgba(255, 255, 255, 0.9)";
    context.fillRect(x - width / 2, y - 8, width, 16);
    this.text(words, x, y + 4, { align: "center", colour: "#111" });
    return true;
  }

  line(x1, y1, x2, y2, { colour = this.colours.line, dash = [], width = 1, under = false } = {}) {
    const { context } = this;
    context.save();
    if (under) context.globalCompositeOperation = "destination-over";
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
    context.restore();
  }

  frame(x, y, width, height, { dash = [], thick = 1.5, colour = this.colours.text } = {}) {
    const { context } = this;
    context.save();
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.setLineDash(dash);
    context.strokeRect(x, y, width, height);
    context.restore();
  }

  // A ring in black and white, seen on every colour.
  ring(x, y, radius) {
    const { context } = this;
    for (const [colour, width] of [["#fff", 4], ["#000", 1.6]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // A rectangle of E820, in CSS pixels.
  block(x, y, width, height, { colour, hatch }) {
    const { context } = this;
    context.save();
    context.translate(x, y);
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    paintHatch(context, colour, hatch, width, height, 1);
    context.restore();
  }
}

// Fills a rectangle from the origin on, with a hatching over it.
function paintHatch(context, colour, hatch, width, height, zoom) {
  context.fillStyle = colour;
  context.fillRect(0, 0, width, height);
  if (!hatch) return;
  const path = new Path2D(hatch), all = new Path2D();
  const shape = new DOMMatrix();
  for (let x = 0; x < width / zoom; x += HATCH) {
    for (let y = 0; y < height / zoom; y += HATCH) all.addPath(path, shape.translate(x, y));
  }
  context.save();
  context.scale(zoom, zoom);
  context.strokeStyle = "rgba(0, 0, 0, 0.55)";
  context.lineWidth = 1.2;
  context.stroke(all);
  context.restore();
}

// Stretches of equal shade: [shade, first, after].
function stretches(shades, count) {
  const found = [];
  for (let x = 0, first = 0; x < count; x += 1) {
    if (x + 1 < count && shades[x + 1] === shades[x]) continue;
    found.push([shades[x], first, x + 1]);
    first = x + 1;
  }
  return found;
}
