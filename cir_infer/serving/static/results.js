// The grid: pictures first, under each what its score is made of.

import { pictureAddress } from "./api.js";
import { $, decimals, el, termName } from "./dom.js";

const COLOURS = ["first", "second", "other"];

export function clearGrid() {
  for (const image of $("grid").querySelectorAll("img")) if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  $("grid").replaceChildren();
  $("grid").classList.remove("old");
}

export function addItems(items, pick) {
  $("grid").append(...items.map((item) => card(item, pick)));
}

export function addHits(hits, from, referenceId, pick, extra) {
  const names = hits.length ? Object.keys(hits[0].terms) : [];
  const largest = Math.max(1e-9, ...hits.flatMap((hit) => names.map((name) => hit.terms[name])));
  $("grid").append(
    ...hits.slice(from).map((hit) => {
      const made = card(hit, pick, hit.id === referenceId);
      made.append(bars(hit, names, largest), facts(hit));
      extra?.(made, hit);
      return made;
    }),
  );
}

function card(item, pick, itself = false) {
  const frame = el("span", { class: "frame" });
  const button = el(
    "button",
    { type: "button", class: "pick", onclick: () => pick(item), "aria-label": label(item) },
    frame,
  );
  if (item.image) {
    const image = el("img", { alt: "", loading: "lazy", decoding: "async" });
    image.addEventListener("error", () => image.replaceWith("no picture"), { once: true });
    // A key's holder gets pictures as data, which is fetched only for what is looked at.
    pictureAddress(item.image, 512).then((address) => (image.src = address), () => image.replaceWith("no picture"));
    frame.append(image);
  } else frame.append("no picture");
  frame.append(el("span", { class: "more", "aria-hidden": "true" }, "More like this, but …"));
  if (itself) frame.append(el("span", { class: "itself" }, "the picture itself"));
  return el("li", { class: "card" }, button);
}

function label(item) {
  const rank = item.rank ? `${item.rank}. ` : "";
  const terms = Object.entries(item.terms ?? {}).map(([name, value]) => `, ${termName(name)} ${decimals(value, 2)}`).join("");
  return `${rank}${item.id}${terms}. Start from this picture`;
}

function bars(hit, names, largest) {
  return el(
    "div",
    { class: "bars", "aria-hidden": "true" },
    ...names.map((name, at) => {
      const bar = el("b", { class: COLOURS[Math.min(at, 2)], title: `${termName(name)}: ${decimals(hit.terms[name], 4)}` });
      bar.style.width = `${Math.max(0, (100 * hit.terms[name]) / largest)}%`;
      return el("i", {}, bar);
    }),
  );
}

function facts(hit) {
  const meta = Object.entries(hit.metadata)
    .map(([name, value]) => {
      if (typeof value === "string") return value.slice(0, 40);
      if (typeof value === "number") return `${name} ${value}`;
      return value === true ? name : null;
    })
    .filter((part) => part)
    .slice(0, 3);
  return el(
    "div",
    { class: "facts" },
    el("span", { class: "meta", title: hit.id }, meta.length ? meta.join(" · ") : hit.id),
    el("span", { title: "score" }, decimals(hit.score, 2)),
  );
}
