// Filters, made of the fields that the gallery has; their value is a `where` for the service.

import { $, count, el } from "./dom.js";

const MOST_FIELDS = 12;
let parts = []; // each: { name, read() -> condition | null, clear(), set(condition) }
let others = []; // [name, condition] of a link that no control can show: they are told, and hold all the same
let told = () => {}; // called when somebody takes one of them away

export function showFilters(fields, changed) {
  parts = [];
  told = changed;
  const box = $("filter-fields");
  box.replaceChildren();
  for (const field of fields.slice(0, MOST_FIELDS)) {
    const part = control(field, changed);
    if (part) {
      parts.push(part);
      box.append(part.element);
    }
  }
  const rest = fields.length - MOST_FIELDS;
  $("filter-rest").textContent = `${count(rest, "more field has", "more fields have")} no filter here; a link or the API can name ${rest === 1 ? "it" : "them"}.`;
  $("filter-rest").hidden = rest <= 0;
  $("filter-clear").onclick = () => {
    writeFilters(null);
    $("filters").firstElementChild.focus(); // the button goes
    changed();
  };
  writeFilters(null);
}

export function readFilters() {
  const where = Object.create(null); // or a field called __proto__ would be lost
  for (const part of parts) {
    const read = part.read();
    if (read !== null) where[part.name] = read;
  }
  const found = Object.keys(where).length + others.length;
  const twice = others.filter(([name]) => name in where);
  for (const [name, condition] of others) if (!(name in where)) where[name] = condition;
  if (twice.length) where.$and = [...(where.$and ?? []), ...twice.map(([name, condition]) => only(name, condition))];
  $("filter-count").textContent = found ? ` (${found})` : "";
  $("filter-clear").hidden = found === 0;
  return found ? where : null;
}

export function writeFilters(where) {
  const left = new Map(Object.entries(where ?? {}));
  for (const part of parts) {
    part.clear();
    if (!left.has(part.name)) continue;
    part.set(left.get(part.name));
    if (same(part.read(), left.get(part.name))) left.delete(part.name);
    else part.clear();
  }
  others = [...left];
  showOthers();
  readFilters();
}

function showOthers() {
  const chip = ([name, condition]) => {
    const text = `${name}: ${JSON.stringify(condition)}`;
    const take = () => {
      others = others.filter((other) => other[0] !== name);
      showOthers();
      $("filters").firstElementChild.focus();
      told();
    };
    return el("button", { type: "button", onclick: take, title: "Take it away", "aria-label": `Take away ${text}` }, el("code", {}, text), " ×");
  };
  $("filter-others").replaceChildren(...others.map(chip));
  $("filter-others-box").hidden = others.length === 0;
  $("filters").hidden = parts.length + others.length === 0;
  if (others.length) $("filters").open = true;
}

function only(name, condition) {
  const where = Object.create(null);
  where[name] = condition;
  return where;
}

// Whether a control shows all of a condition: one value is a list of it, and lists have no order.
function same(read, condition) {
  const plain = (value) => JSON.stringify(Array.isArray(value) ? value.map((one) => JSON.stringify(one)).sort() : value && Object.entries(value).sort());
  return read !== null && plain(read) === plain(condition !== null && typeof condition === "object" ? condition : [condition]);
}

function control(field, changed) {
  const numbers = (field.types.integer ?? 0) + (field.types.decimal ?? 0);
  if (numbers > 0 && typeof field.least === "number" && field.least < field.greatest) return range(field, changed);
  if (field.types.boolean) return choices(field, [["yes", true], ["no", false]], changed);
  if (!field.types.text) return null;
  if (field.distinct !== null && field.distinct <= field.examples.length)
    return choices(field, field.examples.map((value) => [String(value).trim() === "" ? `“${value}”` : String(value), value]).sort(), changed);
  return text(field, changed);
}

function choices(field, values, changed) {
  const boxes = values.map(([label, value]) => {
    const input = el("input", { type: "checkbox", onchange: changed });
    return { input, value, element: el("label", { class: "chip" }, input, el("span", { dir: "auto" }, label)) };
  });
  return {
    name: field.name,
    element: el("fieldset", {}, el("legend", {}, field.name), el("div", { class: "choices" }, ...boxes.map((box) => box.element))),
    read() {
      const chosen = boxes.filter((box) => box.input.checked).map((box) => box.value);
      return chosen.length === 0 || chosen.length === boxes.length ? null : chosen;
    },
    clear: () => boxes.forEach((box) => (box.input.checked = false)),
    set: (condition) => boxes.forEach((box) => (box.input.checked = [condition].flat().includes(box.value))),
  };
}

function range(field, changed) {
  const input = (label, limit) => {
    const check = () => {
      const rounded = /^-?\d+$/.test(made.value) && !Number.isSafeInteger(Number(made.value));
      made.setCustomValidity(rounded ? "It has more digits than this page can hold." : "");
      if (made.reportValidity()) changed();
    };
    // What is wrong holds "Find" up, and could not be seen.
    const show = () => ($("filters").open = true);
    const made = el("input", { type: "number", step: "any", placeholder: String(limit), "aria-label": `${field.name}, ${label}`, onchange: check, oninvalid: show });
    return made;
  };
  const least = input("at least", field.least), most = input("at most", field.greatest);
  return {
    name: field.name,
    element: el("fieldset", {}, el("legend", {}, field.name), el("div", { class: "range" }, least, "to", most)),
    read() {
      const where = {};
      if (least.value !== "" && least.validity.valid) where[">="] = Number(least.value);
      if (most.value !== "" && most.validity.valid) where["<="] = Number(most.value);
      return Object.keys(where).length ? where : null;
    },
    clear() {
      for (const one of [least, most]) {
        one.value = "";
        one.setCustomValidity("");
      }
    },
    set(condition) {
      least.value = condition?.[">="] ?? "";
      most.value = condition?.["<="] ?? "";
    },
  };
}

function text(field, changed) {
  const id = `filter-${parts.length}`;
  const list = el("datalist", { id: `${id}-list` }, ...field.examples.map((value) => el("option", { value: String(value) })));
  const input = el("input", { type: "text", dir: "auto", id, list: `${id}-list`, placeholder: "begins with", onchange: changed });
  return {
    name: field.name,
    element: el("div", {}, el("label", { class: "name", for: id }, field.name), input, list),
    read: () => (input.value.trim() === "" ? null : { prefix: input.value.trim() }),
    clear() { input.value = ""; },
    set(condition) { input.value = condition?.prefix ?? ""; },
  };
}
