// The grid: pictures first, under each what its score is made of.

import { pictureAddress } from "./api.js";
import { $, decimals, el, termName } from "./dom.js";

const COLOURS = ["first", "second", "other"];
const LONGEST = 60; // characters of a value under a picture, of which some 20 find room
let use = { pick: null, more: "" }; // what a picture is used for: pick(item), and what is written on it; null for nothing

export const useOf = (next) => (use = next);

export function clearGrid() {
  for (const image of $("grid").querySelectorAll("img")) if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  $("grid").replaceChildren();
  $("grid").classList.remove("old");
}

export function addItems(items) {
  $("grid").append(...items.map((item) => card(item)));
}

export function addHits(hits, from, referenceId, extra) {
  const names = hits.length ? Object.keys(hits[0].terms) : [];
  const largest = Math.max(1e-9, ...hits.flatMap((hit) => names.map((name) => hit.terms[name])));
  $("grid").style.setProperty("--largest", largest); // of all: a later hit may have more of one term than any before
  $("grid").append(
    ...hits.slice(from).map((hit) => {
      const made = card(hit, hit.id === referenceId);
      made.append(bars(hit, names), facts(hit));
      extra?.(made, hit);
      return made;
    }),
  );
}

function card(item, itself = false) {
  const frame = el("span", { class: "frame" });
  const { pick, more } = use;
  const held = pick ? el("button", { type: "button", class: "pick", onclick: () => pick(item), "aria-label": `${label(item)}. ${more}` }, frame) : frame;
  if (item.image) {
    const image = el("img", { alt: pick ? "" : label(item), loading: "lazy", decoding: "async" });
    image.addEventListener("error", () => image.replaceWith("no picture"), { once: true });
    // A key's holder gets pictures as data: an address alone would be asked for without it.
    pictureAddress(item.image, 512).then((address) => (image.src = address), () => image.replaceWith("no picture"));
    frame.append(image);
  } else frame.append("no picture");
  if (pick) frame.append(el("span", { class: "more", "aria-hidden": "true" }, more));
  if (itself) frame.append(el("span", { class: "itself" }, "the picture itself"));
  return el("li", { class: "card" }, held);
}

function label(item) {
  const rank = item.rank ? `${item.rank}. ` : "";
  const terms = Object.entries(item.terms ?? {}).map(([name, value]) => `, ${termName(name)} ${decimals(value, 2)}`).join("");
  return `${rank}${item.id}${terms}`;
}

function bars(hit, names) {
  return el(
    "div",
    { class: "bars", "aria-hidden": "true" },
    ...names.map((name, at) => {
      const bar = el("b", { class: COLOURS[Math.min(at, 2)], title: `${termName(name)}: ${decimals(hit.terms[name], 4)}` });
      bar.style.width = `calc(100% * ${Math.max(0, hit.terms[name])} / var(--largest))`;
      return el("i", {}, bar);
    }),
  );
}

function facts(hit) {
  const meta = Object.entries(hit.metadata)
    .map(([name, value]) => {
      if (typeof value === "string") return shortened(value);
      // JavaScript has rounded what is beyond 2^53.
      if (typeof value === "number") return `${shortened(name)} ${Number.isInteger(value) && !Number.isSafeInteger(value) ? `≈ ${value.toPrecision(6)}` : value}`;
      return value === true ? shortened(name) : null;
    })
    .filter((part) => part)
    .slice(0, 3)
    .flatMap((part, at) => (at ? [" · ", el("bdi", {}, part)] : [part])); // the first decides which way they run, and at which end they are cut
  return el(
    "div",
    { class: "facts" },
    el("span", { class: "meta", dir: "auto", title: hit.id }, ...(meta.length ? meta : [hit.id])),
    el("span", { title: "score" }, decimals(hit.score, 2)),
  );
}

// No half of a character that JavaScript counts as two.
function shortened(text) {
  const characters = Array.from(text.slice(0, 2 * LONGEST + 2));
  return characters.length > LONGEST ? `${characters.slice(0, LONGEST).join("")}…` : text;
}
