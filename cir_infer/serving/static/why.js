// Why a picture was found: maps over it and over the reference, and the words that count.

import { explain } from "./api.js";
import { $, el, termName } from "./dom.js";

const COLOURS = ["--first", "--second", "--soft"];
const DELAY = 180; // ms that a pointer rests before the next picture is asked about
let shown = null; // { button, canvas } of the picture that is explained
let latest = 0;

// Adds the button to a card. `query` is asked for when it is needed, `failed` told of errors.
export function addWhy(card, hit, step, query, failed) {
  const button = el("button", { type: "button", class: "ask-why", "aria-pressed": "false", "aria-label": `Why ${hit.id}?` }, "Why?");
  let waiting = 0;
  const show = async () => {
    const mine = ++latest;
    try {
      step.why ??= new Map();
      const key = hit.id;
      if (!step.why.has(key)) step.why.set(key, await explain({ ...query(), hit: hit.id }, step.reference?.file));
      if (mine === latest) draw(card, button, step.why.get(key), step);
    } catch (error) {
      if (mine === latest) failed(error);
    }
  };
  button.addEventListener("click", () => (shown?.button === button ? clearWhy() : show()));
  card.addEventListener("pointerenter", (event) => {
    if (shown && shown.button !== button && event.pointerType === "mouse") waiting = setTimeout(show, DELAY);
  });
  card.addEventListener("pointerleave", () => clearTimeout(waiting));
  card.append(button);
}

export function clearWhy() {
  latest += 1;
  shown?.button.setAttribute("aria-pressed", "false");
  shown = null;
  for (const canvas of document.querySelectorAll("canvas.heat")) canvas.remove();
  $("why").hidden = true;
}

function draw(card, button, why, step) {
  clearWhy();
  shown = { button };
  button.setAttribute("aria-pressed", "true");
  card.querySelector(".frame").append(overlay(why.terms));
  if (Object.keys(why.reference).length) $("tile").append(overlay(why.reference));
  tell(why, step);
}

// A square of the size of its frame, over a picture that is fitted into it whole.
function overlay(heats) {
  const side = 320;
  const canvas = el("canvas", { class: "heat shown", width: side, height: side, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  Object.values(heats).forEach((heat, at) => {
    const [width, height] = heat.size;
    const scale = side / Math.max(width, height);
    const left = (side - width * scale) / 2, top = (side - height * scale) / 2;
    context.save();
    context.beginPath();
    context.rect(left, top, width * scale, height * scale);
    context.clip();
    const [x0, y0, x1, y1] = heat.box.map((edge) => edge * scale);
    context.drawImage(cells(heat.map, at), left + x0, top + y0, x1 - x0, y1 - y0);
    context.restore();
  });
  return canvas;
}

function cells(map, at) {
  const rows = map.length, columns = map[0].length;
  const canvas = el("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const colour = getComputedStyle(document.documentElement).getPropertyValue(COLOURS[Math.min(at, 2)]).trim();
  const largest = Math.max(1e-12, ...map.flat());
  map.forEach((row, y) =>
    row.forEach((value, x) => {
      context.globalAlpha = 0.72 * Math.max(0, value / largest);
      context.fillStyle = colour;
      context.fillRect(x, y, 1, 1);
    }),
  );
  return canvas;
}

function tell(why, step) {
  const names = Object.keys(why.terms);
  const parts = names.map((name) => `${termName(name)} ${why.terms[name].value.toFixed(3)}`).join(", ");
  const words = el("p", {});
  const largest = Math.max(1e-12, ...why.words.map((word) => total(word)));
  let at = 0;
  for (const word of why.words.filter((entry) => entry.caption === 0)) {
    words.append(step.text.slice(at, word.start));
    const mark = el("mark", { title: names.map((name) => `${termName(name)} ${word.worth[name].toFixed(3)}`).join(", ") }, step.text.slice(word.start, word.end));
    mark.style.setProperty("--worth", Math.max(0, total(word) / largest).toFixed(2));
    words.append(mark);
    at = word.end;
  }
  words.append(step.text.slice(at));
  const exact = Object.values(why.terms)[0]?.method === "shares" ? "The shaded cells add up to each term." : "Shaded is what the score loses where a part is covered.";
  $("why").replaceChildren(el("p", {}, el("strong", {}, why.id), ` has ${why.score.toFixed(3)}: ${parts}.`), words, el("p", { class: "quiet" }, exact));
  $("why").hidden = false;
}

const total = (word) => Object.values(word.worth).reduce((sum, value) => sum + value, 0);
