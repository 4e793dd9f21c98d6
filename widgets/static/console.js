// A serial console: a log that follows its end, and a line of input with a history.  The kernel holds the text.

function render({ model, el }) {
  const label = document.createElement("label");
  const log = document.createElement("pre");
  const form = document.createElement("form");
  const input = document.createElement("input");
  const send = document.createElement("button");
  const history = [];
  let place = 0;

  el.classList.add("hvlab-console");
  log.setAttribute("role", "log");
  log.tabIndex = 0;
  input.autocomplete = "off";
  input.spellcheck = false;
  send.type = "submit";
  send.textContent = "Send";
  form.append(input, send);
  el.append(label, log, form);

  function show() {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
    log.textContent = model.get("text");
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  function describe() {
    label.textContent = model.get("label");
    log.setAttribute("aria-label", model.get("label"));
    input.setAttribute("aria-label", `${model.get("label")}: a command`);
    input.placeholder = model.get("hint");
    form.hidden = !model.get("takes_input");
    form.style.display = form.hidden ? "none" : "flex";
  }

  function recall(step) {
    place = Math.max(0, Math.min(history.length, place + step));
    input.value = history[place] ?? "";
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!input.value.trim()) return;
    history.push(input.value);
    place = history.length;
    model.send({ kind: "command", line: input.value });
    input.value = "";
  });
  input.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook's own shortcuts stay out of the console
    if (event.key === "ArrowUp") recall(-1);
    else if (event.key === "ArrowDown") recall(1);
    else return;
    event.preventDefault();
  });

  model.on("change:text", show);
  model.on("change:label change:hint change:takes_input", describe);
  describe();
  show();
  requestAnimationFrame(() => { log.scrollTop = log.scrollHeight; });
  return () => { model.off("change:text", show); model.off("change:label change:hint change:takes_input", describe); };
}

export default { render };
