// What all views share: numbers as the field writes them, elements, and the selection.  Each view's module follows in the same text.

// Addresses travel as hex strings (they have 64 bits), page numbers as numbers.
const hex = (value) => value === null || value === undefined ? "" : "0x" + BigInt(value).toString(16);

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let unit = 0, value = Number(bytes);
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${Number(value.toPrecision(4))} ${units[unit]}`;
}

function bdf(source) {
  const part = (value, digits) => value.toString(16).padStart(digits, "0");
  return `${part(source >> 8, 2)}:${part(source >> 3 & 31, 2)}.${source & 7}`;
}

// An element with attributes and children; strings become text, never markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Keys within a view are the view's: the notebook's own shortcuts stay out.
function keepKeys(element) {
  element.addEventListener("keydown", (event) => { if (event.key !== "Tab" && event.key !== "Escape") event.stopPropagation(); });
}

const CHOSEN = { address: null, space: "physical", device: null, domain: "", fault: null };

// The selection that a view shares.  `follow` calls back now and after each change; `choose` sets all of it at once.
async function sharedSelection(model) {
  const reference = model.get("selection");
  const shared = await model.widget_manager.get_model(reference.replace("IPY_MODEL_", ""));
  const names = Object.keys(CHOSEN);
  const events = names.map((name) => `change:${name}`).join(" ");
  const now = () => Object.fromEntries(names.map((name) => [name, shared.get(name)]));
  let waiting = false;
  return {
    now,
    // Whether a kernel answers: none does in an exported page.
    live: () => shared.comm_live !== false,
    choose(what) {
      shared.set({ ...CHOSEN, ...what });
      try { shared.save_changes(); } catch { /* no kernel: an exported page */ }
    },
    follow(callback) {
      const later = () => {
        if (waiting) return;
        waiting = true;
        queueMicrotask(() => { waiting = false; callback(now()); });
      };
      shared.on(events, later);
      callback(now());
      return () => shared.off(events, later);
    },
  };
}

// Gives `ready` the shared selection once it is there and calls `follow`, if given, at each change; returns what undoes it.
function withSelection(model, ready, follow = null) {
  let gone = false, unfollow = () => {};
  sharedSelection(model).then((shared) => {
    if (gone) return;
    ready(shared);
    if (follow) unfollow = shared.follow(follow);
  });
  return () => { gone = true; unfollow(); };
}

// Calls `draw` when any of the named traits changes, and once now; returns what undoes it.
function onChange(model, names, draw) {
  const events = names.map((name) => `change:${name}`).join(" ");
  model.on(events, draw);
  draw();
  return () => model.off(events, draw);
}

const calm = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

