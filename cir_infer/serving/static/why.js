// Why a picture was found: maps over it and over the reference, and the words that count.

import { explain } from "./api.js";
import { $, decimals, el, termName } from "./dom.js";

const COLOURS = ["--first", "--second", "--soft"];
const SIDE = 320; // pixels of an overlay
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

// A square of the size of its frame, over a picture that is fitted into it whole: a colour for each term, all on one
// scale, so that a faint term is faint; hatched is what speaks against the picture.
function overlay(heats) {
  const canvas = el("canvas", { class: "heat shown", width: SIDE, height: SIDE, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const largest = Math.max(1e-12, ...Object.values(heats).flatMap((heat) => heat.map.flat().map(Math.abs)));
  Object.values(heats).forEach((heat, at) => {
    const colour = getComputedStyle(document.documentElement).getPropertyValue(COLOURS[Math.min(at, 2)]).trim();
    context.drawImage(layer(heat, colour, largest), 0, 0);
    const against = layer(heat, colour, -largest);
    hatch(against.getContext("2d"));
    context.drawImage(against, 0, 0);
  });
  return canvas;
}

// What is of the sign of `largest`, in a colour.
function layer(heat, colour, largest) {
  const [width, height] = heat.size;
  const scale = SIDE / Math.max(width, height);
  const left = (SIDE - width * scale) / 2, top = (SIDE - height * scale) / 2;
  const canvas = el("canvas", { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.beginPath();
  context.rect(left, top, width * scale, height * scale);
  context.clip();
  const [x0, y0, x1, y1] = heat.box.map((edge) => edge * scale);
  context.drawImage(cells(heat.map, colour, largest), left + x0, top + y0, x1 - x0, y1 - y0);
  return canvas;
}

function cells(map, colour, largest) {
  const canvas = el("canvas", { width: map[0].length, height: map.length });
  const context = canvas.getContext("2d");
  map.forEach((row, y) =>
    row.forEach((value, x) => {
      context.globalAlpha = 0.72 * Math.max(0, value / largest);
      context.fillStyle = colour;
      context.fillRect(x, y, 1, 1);
    }),
  );
  return canvas;
}

// Leaves stripes of what is drawn.
function hatch(context) {
  context.globalCompositeOperation = "destination-in";
  context.lineWidth = 4;
  context.beginPath();
  for (let at = -SIDE; at < SIDE; at += 11) {
    context.moveTo(at, 0);
    context.lineTo(at + SIDE, SIDE);
  }
  context.stroke();
}

function tell(why, step) {
  const names = Object.keys(why.terms);
  const parts = names.map((name) => `${termName(name)} ${decimals(why.terms[name].value, 3)}`).join(", ");
  const words = el("p", { dir: "auto" });
  const largest = Math.max(1e-12, ...why.words.map((word) => Math.abs(total(word))));
  const characters = Array.from(step.text); // the service counts these, and a string those of UTF-16
  const written = (start, end) => characters.slice(start, end).join("");
  let at = 0;
  for (const word of why.words.filter((entry) => entry.caption === 0)) {
    words.append(written(at, word.start));
    const mark = el("mark", { title: names.map((name) => `${termName(name)} ${decimals(word.worth[name], 3)}`).join(", ") }, written(word.start, word.end));
    mark.style.setProperty("--worth", Math.abs(total(word) / largest).toFixed(2));
    mark.classList.toggle("against", total(word) < 0);
    words.append(mark);
    at = word.end;
  }
  words.append(written(at));
  const exact = Object.values(why.terms)[0]?.method === "shares" ? "The cells, and a rest that none of them has, add up to each term" : "Shaded is what the score loses where a part is covered";
  const unmoved = why.unmoved.map((name) => ` No part of the reference moves “${termName(name)}”.`).join("");
  $("why").replaceChildren(el("p", {}, el("strong", {}, el("bdi", {}, why.id)), ` has ${decimals(why.score, 3)}: ${parts}.`), words, el("p", { class: "quiet" }, `${exact}; hatched is what speaks against this picture.${unmoved}`));
  $("why").hidden = false;
}

const total = (word) => Object.values(word.worth).reduce((sum, value) => sum + value, 0);
