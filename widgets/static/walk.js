// One request step by step: a list of the unit's steps, and of the current one the raw words bit by bit, their fields, where the entry
// lies and which bits of the address led there.  The ways of the first faults are here; any other the kernel works out.

const BITS_A_GROUP = 8, GROUPS_A_LINE = 4;

// The bits of a word, highest first; `marks` are the set bits that must be zero, the clear bits that had to be set, and the chosen field.
function bitsOf(word, marked) {
  const value = BigInt(word.value), offends = BigInt(word.offends), lacks = BigInt(word.lacks);
  const has = (mask, bit) => Boolean(mask >> BigInt(bit) & 1n);
  return Array.from({ length: word.width }, (_, i) => word.width - 1 - i).map((bit) => ({
    bit, set: has(value, bit), offends: has(offends, bit), lacks: has(lacks, bit), marked: marked !== null && marked[0] >= bit && bit >= marked[1],
  }));
}

function drawBits(word, marked) {
  const strip = make("div", { class: "hv-bits", role: "img", "aria-label": bitWords(word) });
  const cells = bitsOf(word, marked);
  let line = null;
  for (let i = 0; i < cells.length; i += BITS_A_GROUP) {
    if (i % (BITS_A_GROUP * GROUPS_A_LINE) === 0) strip.append(line = make("span", { class: "hv-line" }));
    const group = make("span", { class: "hv-byte" }, make("span", { class: "hv-bit-number" }, String(cells[i].bit)));
    for (const cell of cells.slice(i, i + BITS_A_GROUP)) {
      const names = ["set", "offends", "lacks", "marked"].filter((name) => cell[name]).map((name) => `hv-${name}`);
      group.append(make("span", { class: ["hv-bit", ...names].join(" ") }, cell.set ? "1" : "0"));
    }
    line.append(group);
  }
  return strip;
}

function bitWords(word) {
  const bits = bitsOf(word, null);
  const list = (name) => bits.filter((b) => b[name]).map((b) => b.bit).join(", ");
  const parts = [["set", "set bits"], ["offends", "must be zero"], ["lacks", "had to be set"]].filter(([name]) => list(name));
  return `${word.name} ${word.value}: ` + (parts.map(([name, words]) => `${words} ${list(name)}`).join("; ") || "all bits are zero");
}

const place = ([, high, low]) => high === low ? String(high) : `${high}:${low}`;

// What speaks against the request in bits high..low of a word, in words.
function objection(word, high, low) {
  const field = ((1n << BigInt(high - low + 1)) - 1n) << BigInt(low);
  if (BigInt(word.offends) & field) return "must be zero";
  return BigInt(word.lacks) & field ? "had to be set" : "";
}

// Bits that belong to no field and speak against the request, as rows of their own.
function strayRows(word) {
  const stray = bitsOf(word, null).filter((b) => (b.offends || b.lacks) && !word.fields.some(([, high, low]) => high >= b.bit && b.bit >= low));
  return stray.map(({ bit, set }) => ["reserved", bit, bit, set ? "0x1" : "0x0", "", true]);
}

// A number's fields side by side, each as wide as its bits; those that the step uses are framed and say so.
function drawCut(cut) {
  const words = cut.fields.map((f) => `${f[0]}, bits ${place(f)}, ${f[3]}${cut.used.includes(f[0]) ? " (used here)" : ""}`);
  const row = make("div", { class: "hv-cut", role: "img", "aria-label": `${cut.name} ${cut.value}: ${words.join("; ")}` });
  for (const field of cut.fields) {
    const [name, high, low, value] = field;
    const used = cut.used.includes(name);
    row.append(make("div", { class: used ? "hv-part hv-used" : "hv-part", style: `flex-grow:${high - low + 1}` },
      make("span", { class: "hv-quiet" }, place(field)), make("strong", {}, value), make("span", {}, name), make("span", { class: "hv-here" }, used ? "used here" : "")));
  }
  return make("div", {}, make("div", {}, `${cut.name} `, make("code", {}, cut.value), " in its fields:"), row);
}

function fieldRow(word, field, marked, mark) {
  const [name, high, low, value, meaning] = field;
  const wrong = objection(word, high, low);
  const pressed = marked !== null && marked[0] === high && marked[1] === low;
  const button = make("button", { type: "button", "aria-pressed": String(pressed), onclick: () => mark(pressed ? null : [high, low]) }, name);
  return make("tr", { class: wrong ? "hv-wrong" : null }, make("td", {}, button), make("td", { class: "hv-number" }, place(field)),
    make("td", { class: "hv-number" }, value), make("td", {}, meaning, wrong ? make("strong", {}, `${meaning ? " \u2013 " : ""}\u2717 ${wrong}`) : null));
}

function drawWord(word) {
  const box = make("div", { class: "hv-word" });
  let marked = null;
  function draw() {
    const counting = [...word.fields.filter((f) => f[5] || objection(word, f[1], f[2])), ...strayRows(word)];
    const rest = word.fields.filter((f) => !counting.includes(f));
    const head = make("tr", {}, ...["field", "bits", "value", "meaning"].map((name) => make("th", { scope: "col" }, name)));
    const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...counting.map((f) => fieldRow(word, f, marked, mark))));
    const others = rest.map((f) => `${f[0]} ${f[3]}`).join(", ");
    box.replaceChildren(make("div", {}, `${word.name} = `, make("code", {}, "0x" + BigInt(word.value).toString(16).padStart(word.width / 4, "0"))),
      drawBits(word, marked), table, others ? make("div", { class: "hv-quiet" }, `does not count here: ${others}`) : "");
  }
  function mark(bits) {
    const row = box.contains(document.activeElement) ? document.activeElement.closest("tr")?.rowIndex : undefined;
    marked = bits;
    draw();
    if (row !== undefined) box.querySelector("table").rows[row]?.querySelector("button")?.focus();
  }
  draw();
  return box;
}

// --- the form for any other request

function requestForm(ask) {
  const device = make("select", { "aria-label": "Device" });
  const access = make("select", { "aria-label": "Access" }, make("option", { value: "read" }, "reads"), make("option", { value: "write" }, "writes"));
  const address = make("input", { type: "text", size: "18", spellcheck: "false", autocomplete: "off", placeholder: "0x7a3e1000", "aria-label": "IOVA" });
  const form = make("form", { class: "hv-bar" }, "What if", device, access, address, make("button", { type: "submit" }, "Ask"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [source, segment] = device.value.split("/").map(Number);
    ask({ kind: "ask", source, segment, access: access.value, address: address.value.trim() });
  });
  return {
    form,
    devices(list) {
      const before = device.value;
      device.replaceChildren(...list.map(([source, segment, name]) => make("option", { value: `${source}/${segment}` }, name)));
      if ([...device.options].some((o) => o.value === before)) device.value = before;
      form.hidden = !list.length;
    },
    follow(now) {
      if (form.contains(document.activeElement)) return;
      const option = [...device.options].find((o) => o.value.startsWith(`${now.device}/`));
      if (option) device.value = option.value;
      if (now.address !== null && now.space === "iova") address.value = now.address;
    },
  };
}

function isAddress(words) {
  try {
    return words !== "" && BigInt(words) >= 0n && !(BigInt(words) >> 64n);
  } catch {
    return false;
  }
}

function render({ model, el }) {
  const heading = make("h4");
  const chooser = make("select", { "aria-label": "Fault" });
  const back = make("button", { type: "button", onclick: () => go(step - 1) }, "Previous step");
  const on = make("button", { type: "button", onclick: () => go(step + 1) }, "Next step");
  const said = make("div", { class: "hv-said", role: "status", "aria-live": "polite" });
  const title = make("h5");
  const verdict = make("p", { class: "hv-verdict" });
  const note = make("p", { class: "hv-note" });
  const without = make("p", { class: "hv-quiet" });
  const list = make("ol", { class: "hv-steps" });
  const detail = make("div", { class: "hv-detail", role: "group" });
  const { form, devices, follow: fill } = requestForm(ask);
  el.classList.add("hvlab-view", "hvlab-walk");
  const faults = make("label", {}, "Fault ", chooser);
  el.append(heading, make("div", { class: "hv-bar" }, faults, back, on), form, said, title, verdict, note, without, make("div", { class: "hv-both" }, list, detail));
  keepKeys(el);
  let shown = 0, step = 0, answer = model.get("asked").number, selection = null, followed = null;

  // What is shown; undefined where there is no fault and nothing was asked.
  const way = () => {
    const now = shown === "asked" ? model.get("asked") : model.get("walks")[shown];
    return now?.steps ? now : undefined;
  };

  function ask(request) {
    if (!isAddress(request.address)) {
      said.textContent = `'${request.address}' is no address: write it like 0x7a3e1000`;
      return;
    }
    model.set("said", "");
    try { model.save_changes(); } catch { /* no kernel: an exported page */ }
    said.textContent = "Asked. The answer comes from the kernel.";
    model.send({ ...request, address: hex(request.address) });
  }

  function show(which) {
    shown = which;
    step = 0;
    draw();
  }

  function go(to) {
    const count = way()?.steps.length ?? 0;
    const next = Math.max(0, Math.min(count, to));
    if (!way() || next === step) return;
    const inList = list.contains(document.activeElement);
    step = next;
    draw();
    said.textContent = step < count ? `Step ${step + 1} of ${count}: ${way().steps[step].what}` : "Verdict";
    if (inList) list.querySelector("[aria-current]").focus();
  }

  function item(number, words, mark) {
    const now = number === step;
    const button = make("button", { type: "button", "aria-current": now ? "step" : null, tabindex: now ? "0" : "-1", onclick: () => go(number) },
      make("span", { "aria-hidden": "true", class: mark === "\u2717" ? "hv-stop" : "hv-go" }, mark), ` ${words}`,
      mark === "\u2717" ? make("span", { class: "hv-quiet" }, " \u2013 stops here") : null);
    return make("li", {}, button);
  }

  function stepDetail({ what, text, ok, section, address, sum, cut, words }, number, count) {
    const entry = address === null ? null : make("button", { type: "button", onclick: () => selection?.choose({ ...selection.now(), address, space: "physical" }) },
      `Choose the entry's address ${address}`);
    detail.setAttribute("aria-label", `Step ${number + 1}: ${what}`);
    detail.replaceChildren(make("strong", {}, `Step ${number + 1} of ${count}: ${what}`), make("p", {}, text, ok ? "" : make("strong", {}, " \u2717 The request stops here.")),
      cut ? drawCut(cut) : "", sum ? make("p", {}, make("code", {}, sum), " ", entry) : "", ...words.map(drawWord),
      section ? make("p", { class: "hv-quiet" }, `VT-d specification 2.4, section ${section}`) : "");
  }

  function verdictDetail({ verdict: words, through, steps }) {
    const last = steps[steps.length - 1];
    detail.setAttribute("aria-label", "Verdict");
    detail.replaceChildren(make("strong", {}, "Verdict"), make("p", {}, words),
      make("p", {}, through ? "No step spoke against the request." : `It was decided by step ${steps.length}, ${last.what}: ${last.text}.`));
  }

  function options() {
    const walks = model.get("walks"), asked = model.get("asked");
    const items = walks.map((walk, i) => make("option", { value: String(i) }, `${i + 1}: ${walk.heading}`));
    if (asked.steps) items.push(make("option", { value: "asked" }, `asked: ${asked.heading}`));
    chooser.replaceChildren(...items);
    chooser.value = String(shown);
    faults.hidden = !items.length;
  }

  function draw() {
    const now = way();
    options();
    heading.textContent = model.get("label");
    imagine();
    for (const part of [title, verdict, note, list, detail, back, on]) part.hidden = !now;
    if (!now) return;
    const { steps } = now;
    title.textContent = now.heading;
    verdict.textContent = `${now.through ? "\u2713" : "\u2717"} ${now.verdict}`;
    verdict.classList.toggle("hv-through", now.through);
    note.textContent = now.note;
    note.hidden = !now.note;
    list.replaceChildren(...steps.map((s, i) => item(i, s.what, s.ok ? "\u2713" : "\u2717")), item(steps.length, "verdict", "="));
    list.setAttribute("aria-label", `Steps of ${now.heading}`);
    back.disabled = step === 0;
    on.disabled = step === steps.length;
    if (step < steps.length) stepDetail(steps[step], step, steps.length);
    else verdictDetail(now);
  }

  function imagine() {
    const told = model.get("without");
    without.hidden = told.words === undefined || told.fault !== shown;
    without.textContent = told.words ?? "";
  }

  function follow(now) {
    fill(now);
    if (now.fault !== null && now.fault !== followed && model.get("walks")[now.fault]) show(now.fault);
    followed = now.fault;
  }

  function renew() {
    if (shown === "asked" ? !model.get("asked").steps : !model.get("walks")[shown]) shown = model.get("walks").length ? 0 : "asked";
    step = Math.min(step, way()?.steps.length ?? 0);
    draw();
    if (way()) fill({ ...CHOSEN, ...way().choice });
  }

  chooser.addEventListener("change", () => {
    show(chooser.value === "asked" ? "asked" : Number(chooser.value));
    followed = way().choice.fault ?? null;
    selection?.choose(way().choice);
  });
  el.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: step + 1, ArrowDown: step + 1, ArrowLeft: step - 1, ArrowUp: step - 1, Home: 0, End: Infinity };
    if (!(event.key in steps) || event.target.closest("input, select") || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(steps[event.key]);
  });

  const offs = [
    onChange(model, ["devices"], () => devices(model.get("devices"))),
    onChange(model, ["walks", "label"], renew),
    onChange(model, ["without"], imagine),
    onChange(model, ["said"], () => { said.textContent = model.get("said"); }),
  ];
  const answered = () => {
    const { number } = model.get("asked");
    if (number !== undefined && number !== answer) {
      show("asked");
      said.textContent = `Answer: ${way().heading}`;
    } else {
      renew();
    }
    answer = number;
  };
  model.on("change:asked", answered);
  const leave = withSelection(model, (shared) => { selection = shared; }, follow);
  return () => { offs.forEach((off) => off()); model.off("change:asked", answered); leave(); };
}

export default { render };
