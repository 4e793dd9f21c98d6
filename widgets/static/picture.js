// A picture drawn in the kernel whose parts can be chosen.  Parts carry data-start and data-end (a half-open range), data-device (requester
// ids) or data-domain, and data-space where that is not the picture's; data-path names the devices and domains on whose way a shape lies;
// the picture carries data-scale, the places [address, x] between which a marker for any address is interpolated.

function parts(svg) {
  return [...svg.querySelectorAll("[data-start], [data-device], [data-domain]")];
}

function isOnPath(shape, chosen) {
  const members = shape.dataset.path.split(" ");
  return chosen.device !== null ? members.includes(String(chosen.device)) : members.includes(chosen.domain);
}

function isChosen(part, chosen) {
  if (chosen.device !== null && (part.dataset.device ?? "").split(" ").includes(String(chosen.device))) return true;
  if (chosen.domain && part.dataset.domain === chosen.domain) return true;
  if (chosen.address === null || part.dataset.start === undefined) return false;
  const address = BigInt(chosen.address);
  return BigInt(part.dataset.start) <= address && address < BigInt(part.dataset.end);
}

function place(scale, address) {
  for (let i = 1; i < scale.length; i += 1) {
    const [[a, x], [b, y]] = [scale[i - 1], scale[i]];
    if (BigInt(a) <= address && address < BigInt(b)) return x + (y - x) * Number(address - BigInt(a)) / Number(BigInt(b) - BigInt(a));
  }
  return null;
}

function mark(svg, chosen) {
  svg.querySelector(".hv-marker")?.remove();
  const scale = JSON.parse(svg.dataset.scale ?? "[]");
  const x = chosen.address === null ? null : place(scale, BigInt(chosen.address));
  if (x === null) return;
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const { height } = svg.viewBox.baseVal;
  line.setAttribute("class", "hv-marker");
  line.setAttribute("d", `M${x},0 V${height} M${x - 5},0 h10 l-5,7 z`);
  svg.append(line);
}

function render({ model, el }) {
  const heading = make("h4");
  const bar = make("div", { class: "hv-bar" });
  const frame = make("div", { class: "hv-frame" });
  const said = make("div", { class: "hv-said", role: "status", "aria-live": "polite" });
  const more = make("details", {}, make("summary", {}, "The same as a table"));
  const table = make("div");
  more.append(table);
  el.classList.add("hvlab-view", "hvlab-picture");
  el.append(heading, bar, frame, said, more);
  keepKeys(frame);
  let selection = null, current = 0;

  const svg = () => frame.querySelector("svg");
  const words = (part) => part.querySelector("title")?.textContent ?? part.getAttribute("aria-label") ?? "";

  function choose(part) {
    const { start, device, domain } = part.dataset;
    const what = { space: part.dataset.space ?? svg().dataset.space ?? "physical" };
    if (start !== undefined) what.address = start;
    if (device !== undefined && !device.includes(" ")) what.device = Number(device);
    if (domain !== undefined) what.domain = domain;
    said.textContent = words(part);
    selection?.choose(what);
  }

  function focusPart(step) {
    const all = parts(svg());
    if (!all.length) return;
    current = (current + step + all.length) % all.length;
    all.forEach((part, i) => part.setAttribute("tabindex", i === current ? "0" : "-1"));
    if (step) all[current].focus();
    if (step) said.textContent = words(all[current]);
  }

  function follow(chosen) {
    const drawn = svg();
    if (!drawn) return;
    for (const part of parts(drawn)) part.classList.toggle("hv-chosen", isChosen(part, chosen));
    for (const shape of drawn.querySelectorAll("[data-path]")) shape.classList.toggle("hv-on-path", isOnPath(shape, chosen));
    mark(drawn, chosen);
  }

  function draw() {
    const pictures = model.get("pictures"), names = Object.keys(pictures);
    const name = names.includes(model.get("shown")) ? model.get("shown") : names[0];
    heading.textContent = model.get("label");
    bar.replaceChildren(...(names.length > 1 ? names.map((other) => make("button", {
      type: "button", "aria-pressed": String(other === name), onclick: () => { model.set("shown", other); model.save_changes(); },
    }, other)) : []));
    frame.innerHTML = pictures[name] ?? "";
    table.innerHTML = model.get("table");
    more.hidden = !model.get("table");
    const drawn = svg();
    if (!drawn) return;
    drawn.setAttribute("role", "group");
    // What scrolls can be reached by keyboard: by its parts, or else itself.
    if (parts(drawn).length) frame.removeAttribute("tabindex");
    else frame.setAttribute("tabindex", "0");
    parts(drawn).forEach((part) => {
      part.setAttribute("role", "button");
      part.setAttribute("aria-label", words(part));
      part.addEventListener("click", () => choose(part));
    });
    current = 0;
    focusPart(0);
    if (selection) follow(selection.now());
  }

  frame.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const part = event.target.closest("[role=button]");
    if (steps[event.key]) focusPart(steps[event.key]);
    else if (part && (event.key === "Enter" || event.key === " ")) choose(part);
    else return;
    event.preventDefault();
  });

  const off = onChange(model, ["pictures", "shown", "label", "table"], draw);
  const leave = withSelection(model, (shared) => { selection = shared; }, follow);
  return () => { off(); leave(); };
}

export default { render };
