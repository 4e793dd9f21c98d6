// The views of a report at work: each has its state in the page, and a model as its module knows it from a notebook, without a kernel.

(() => {
  const told = JSON.parse(document.getElementById("hvlab-state").textContent);

  function bytes(value) {
    if (value === null || typeof value !== "object" || typeof value.$bytes !== "string") return value;
    return Uint8Array.from(atob(value.$bytes), (letter) => letter.charCodeAt(0));
  }

  class Model {
    constructor(state) {
      this.state = Object.fromEntries(Object.entries(state).map(([name, value]) => [name, bytes(value)]));
      this.listeners = new Map();
      this.comm_live = false;
      this.widget_manager = { get_model: async (key) => selections[key] };
    }

    get(name) { return this.state[name]; }

    set(names, value) {
      const values = typeof names === "string" ? { [names]: value } : names;
      const changed = Object.keys(values).filter((name) => this.state[name] !== values[name]);
      Object.assign(this.state, values);
      for (const name of changed) for (const listener of [...this.listeners.get(`change:${name}`) ?? []]) listener();
    }

    on(events, listener) {
      for (const event of events.split(" ")) this.listeners.set(event, [...this.listeners.get(event) ?? [], listener]);
    }

    off(events, listener) {
      for (const event of events.split(" ")) this.listeners.set(event, (this.listeners.get(event) ?? []).filter((other) => other !== listener));
    }

    save_changes() {}

    send() {}
  }

  const selections = {};
  for (const { selection } of Object.values(told)) {
    selections[selection] ??= new Model({ address: null, space: "physical", device: null, domain: "", fault: null });
  }

  // The picture gives way to the view; where a view cannot work it stays.
  function mount(place) {
    const { module, selection, state } = told[place.dataset.view];
    const still = [...place.childNodes], element = document.createElement("div");
    place.replaceChildren(element);
    try {
      hvlabModules[module].render({ model: new Model({ ...state, selection: `IPY_MODEL_${selection}` }), el: element });
    } catch (error) {
      place.replaceChildren(...still);
      console.error(error);
    }
  }

  function copied(button, text) {
    const said = (words) => { button.textContent = words; setTimeout(() => { button.textContent = "Copy"; }, 2000); };
    navigator.clipboard.writeText(text).then(() => said("Copied"), () => said("Not copied: choose the text and copy it"));
  }

  for (const text of navigator.clipboard ? document.querySelectorAll("pre[data-copy]") : []) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: "Copy", onclick: () => copied(button, text.textContent) });
    button.setAttribute("aria-label", `Copy: ${text.dataset.copy}`);
    text.before(button);
  }

  // The map draws with the page's colours, and looks for others when the body says that it has them.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colours = () => { document.body.dataset.jpThemeLight = String(!dark.matches); };
  dark.addEventListener("change", colours);
  colours();
  for (const place of document.querySelectorAll("[data-view]")) mount(place);
  document.documentElement.dataset.ready = "yes";
})();
