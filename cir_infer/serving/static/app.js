// The page: a picture, what should be different about it, and the way from one answer to the next.

import { getJson, hasKey, pictureAddress, Problem, search, useKey } from "./api.js";
import { $, count, el, termName } from "./dom.js";
import { readFilters, showFilters, writeFilters } from "./filters.js";
import { keep, kept, stepOf } from "./links.js";
import { addHits, addItems, clearGrid, useOf } from "./results.js";
import { addWhy, clearWhy } from "./why.js";

const PAGE = 24;
const AHEAD = 600; // pixels below the window that are filled already
let about = null; // what /v1/info says
let reference = null; // { id, image } of the gallery, or { file, url } of one's own
let steps = []; // the searches that led to what is shown, each with its answer
let shown = null; // the step that is shown: one of these, or one without an answer, for which items are listed
let asking = null; // what stops the search that is under way
let filling = false;

// ---- what is told

function problem(error, again) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 401) return askForKey(hasKey() ? "This key is not known." : "");
  if (!(error instanceof Problem)) console.error(error);
  const title = error.title ?? "The page failed";
  const close = el("button", { type: "button", class: "plain", onclick: fine }, "Close");
  const retry = again && el("button", { type: "button", onclick: () => (fine(), again()) }, "Try again");
  $("problem").replaceChildren(el("div", {}, el("strong", {}, title), error.message), el("div", { class: "answers" }, retry, close));
  $("problem").hidden = false;
  $("grid").classList.remove("old");
}

const fine = () => ($("problem").hidden = true);
const say = (text) => ($("status").textContent = text);

function askForKey(told) {
  $("key-problem").textContent = told;
  $("key-problem").hidden = told === "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

// ---- the reference

async function setReference(next) {
  reference = next;
  clearWhy();
  const image = $("picture");
  $("empty").hidden = next !== null;
  image.hidden = next === null;
  if (next === null) return image.removeAttribute("src");
  image.alt = next.id === undefined ? "Your picture" : `The item ${next.id}`;
  try {
    if (next.id !== undefined && next.image === undefined) next.image = (await getJson(`v1/items/${segment(next.id)}`)).image;
    next.url ??= next.image ? await pictureAddress(next.image, 512) : next.file ? await opaque(next.file) : "";
    if (reference === next && next.url) image.src = next.url;
    if (steps.some((step) => step.reference === next)) showTrail();
  } catch (error) {
    problem(error);
  }
}

// What is transparent shows no colour of the page's: encoders take what lies below, so the picture without alpha is shown.
async function opaque(file) {
  try {
    const picture = await createImageBitmap(file, { premultiplyAlpha: "none" });
    const scale = Math.min(1, 2048 / Math.max(picture.width, picture.height));
    const canvas = el("canvas", { width: Math.max(1, picture.width * scale), height: Math.max(1, picture.height * scale) });
    const whole = /jpe?g|bmp/.test(file.type) ? picture : withoutAlpha(picture) ?? picture;
    canvas.getContext("2d", { alpha: false }).drawImage(whole, 0, 0, canvas.width, canvas.height);
    return URL.createObjectURL(await new Promise((done) => canvas.toBlob(done)));
  } catch {
    return URL.createObjectURL(file);
  }
}

// A canvas loses colours below transparency, a texture keeps them. null where a browser has none of that size: there black is shown.
function withoutAlpha(picture) {
  const { width, height } = picture;
  const gl = el("canvas").getContext("webgl");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const pixels = new ImageData(width, height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(pixels.data.buffer));
  const failed = gl.getError();
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  if (failed) return null;
  for (let at = 3; at < pixels.data.length; at += 4) pixels.data[at] = 255;
  const canvas = el("canvas", { width, height });
  canvas.getContext("2d", { alpha: false }).putImageData(pixels, 0, 0);
  return canvas;
}

const segment = (id) => encodeURIComponent(id);

function useFile(file) {
  if (about?.needs_image === false) return;
  fine();
  if (!file.type.startsWith("image/")) return problem(new Problem({ title: "That is no picture", detail: `${file.name || "It"} is ${file.type || "of no known type"}.` }));
  if (about && file.size > about.limits.upload_bytes)
    return problem(new Problem({ title: "The picture is too large", detail: `It has ${(file.size / 1e6).toFixed(1)} MB; at most ${(about.limits.upload_bytes / 1e6).toFixed(0)} MB are taken.` }));
  setReference({ file });
  say("The picture is ready. Say what should be different.");
  if (about?.needs_text === false) return find();
  $("text").focus();
}

function pick(item) {
  fine();
  setReference({ id: item.id, image: item.image });
  if (!about.needs_text) return find();
  $("text").value = "";
  say(`${item.id} is the picture now. Say what should be different.`);
  scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  $("text").focus({ preventScroll: true });
}

// ---- searching

function balanceOf(value) {
  if (!value || about.terms.length !== 2) return undefined;
  return { [about.terms[0]]: 4 ** -value, [about.terms[1]]: 4 ** value };
}

function queryOf(step, k) {
  const query = { k };
  if (step.text) query.text = step.text;
  if (step.reference?.id !== undefined) query.item = step.reference.id;
  if (step.where) query.where = step.where;
  const balance = balanceOf(step.balance);
  if (balance) query.balance = balance;
  return query;
}

const answerOf = (step, k, signal) => search(queryOf(step, Math.min(k, about.limits.k)), step.reference?.file, signal);

async function find() {
  if (about === null) return begin();
  fine();
  if (reference === null && about.needs_image) return problem(new Problem({ title: "A picture is missing", detail: "Choose one, drop or paste one, or start from one of those below." }));
  const text = $("text").value.trim();
  if (text === "" && about.needs_text) {
    $("text").focus();
    const what = about.needs_image ? "Say what should be different about the picture, for example “is red”." : "Say what you are looking for.";
    return problem(new Problem({ title: "The words are missing", detail: what }));
  }
  // Words, filters and balance that are changed for the same picture take the place of the search before.
  const same = Boolean(shown?.answer) && shown.reference === reference && shown.text === text;
  const step = { reference, text, where: readFilters(), balance: Number($("balance").value) };
  await ask(step, steps.slice(0, steps.indexOf(shown) + (same ? 0 : 1)), same);
}

// Asks and shows the answer, behind the searches before it; false where there is none, null where another took its turn. What is in the form stays:
// somebody may be typing.
async function ask(step, before, instead) {
  asking?.abort();
  const mine = (asking = new AbortController());
  $("grid").classList.add("old");
  try {
    step.answer = await answerOf(step, PAGE, mine.signal);
  } catch (error) {
    problem(error);
    return error.name === "AbortError" ? null : false;
  } finally {
    if (asking === mine) asking = null;
  }
  step.way = steps = [...before, step];
  keep(step, instead);
  show(step);
  return true;
}

// What is in place of what was shown before, whatever that was.
function clear(step, title) {
  shown = step;
  clearWhy();
  clearGrid();
  $("results-title").replaceChildren(...title);
  $("timing").textContent = $("end").textContent = "";
  $("copy").hidden = !step.answer || step.reference?.file !== undefined;
  $("unknown").hidden = true;
  document.title = step.answer && step.text ? `${step.text} · cir` : "Composed image retrieval";
  showTrail();
}

function show(step) {
  const { answer } = step;
  clear(step, !answer.hits.length ? ["Nothing fits"] : step.text ? ["“", el("bdi", {}, step.text), "”"] : ["Found"]);
  addHits(answer.hits, 0, answer.reference_id, (card, hit) => whyOf(card, hit, step));
  performance.mark("drawn");
  performance.measure("answer to drawing", "answered", "drawn");
  showTiming(answer.timing);
  showEnd(answer.hits.length);
  if (answer.unknown_words.length) {
    const words = answer.unknown_words.flatMap((word) => [", ", el("bdi", {}, word)]).slice(1);
    $("unknown").replaceChildren("The model does not know: ", ...words, ". Unknown words count as one and the same.");
    $("unknown").hidden = false;
  }
  say(answer.hits.length ? `${count(answer.hits.length, "picture", "pictures")} found.` : "Nothing was found.");
  more();
}

const whyOf = (card, hit, step) => about.explains && hit.image && addWhy(card, hit, step, () => queryOf(step, 1), problem);

function showEnd(found) {
  $("end").textContent = found === 0 ? "No item passes the filters." : found === about.limits.k ? `These are the best ${found}, as many as one search gives.` : "";
}

function showTiming(timing) {
  const parts = ["decode", "wait", "search"].filter((name) => timing[name] >= 0.1).map((name) => `${name} ${timing[name].toFixed(1)}`);
  $("timing").textContent = `${timing.total.toFixed(0)} ms (${parts.join(", ")})`;
}

function showTrail() {
  const focused = $("trail").contains(document.activeElement);
  $("trail-box").hidden = steps.length === 0;
  $("trail").replaceChildren(
    ...steps.map((step) => {
      const picture = step.reference?.url ? el("img", { src: step.reference.url, alt: "" }) : el("span", { class: "none" });
      const words = el("span", { dir: "auto" }, step.text || "this picture");
      const button = el("button", { type: "button", onclick: () => goTo(step, true), "aria-current": step === shown ? "step" : null }, picture, words);
      return el("li", {}, button);
    }),
  );
  const current = $("trail").children[steps.indexOf(shown)];
  current?.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (focused) current?.firstChild.focus();
}

// A step as it was, or as a link says; one that was not answered is asked again.
async function goTo(step, push = false) {
  asking?.abort();
  fine();
  $("text").value = step.text;
  $("balance").value = step.balance;
  writeFilters(step.where);
  if (!step.unread) step.where = readFilters();
  keep(step, !push);
  setReference(step.reference);
  if (step.answer) {
    if (!steps.includes(step)) steps = step.way;
    return show(step);
  }
  const whole = (step.reference || !about.needs_image) && (step.text || !about.needs_text);
  // Not asked without its filter: whoever sent the link meant other answers.
  if (whole && !step.unread && (await ask(step, [], true)) !== false) return;
  list(step);
  if (step.unread) problem(new Problem({ title: "The filter of this link cannot be read", detail: `${step.unread} Without it “Find” answers.` }));
}

// ---- going on

function list(step) {
  step.items = { after: null, where: readFilters(), done: false };
  clear(step, [about.needs_image ? "Start from one of these" : "Some of what there is"]);
  return more();
}

async function more() {
  const end = $("end").getBoundingClientRect().top;
  if (filling || asking !== null || shown === null || ($("grid").children.length && end > innerHeight + AHEAD)) return;
  filling = true;
  const step = shown;
  let added = false;
  try {
    added = await (step.answer ? moreHits(step) : moreItems(step, step.items));
  } catch (error) {
    if (error.status === 401) problem(error);
    // Below, where whoever scrolls is.
    else if (step === shown) {
      const again = () => (($("end").textContent = ""), more());
      $("end").replaceChildren(`${error.title ?? "The page failed"}: ${error.message} `, el("button", { type: "button", onclick: again }, "Try again"));
      say(error.message);
    }
  } finally {
    filling = false;
  }
  // The observer tells only of changes, and the end may still be near.
  if (added || step !== shown) more();
}

async function moreItems(step, items) {
  if (items.done) return false;
  const query = new URLSearchParams({ limit: Math.min(PAGE, about.limits.k) });
  if (items.where) query.set("where", JSON.stringify(items.where));
  if (items.after) query.set("after", items.after);
  const found = await getJson(`v1/items?${query}`);
  if (step !== shown || items !== step.items) return true;
  items.after = found.after;
  items.done = found.after === null;
  addItems(found.items);
  $("timing").textContent = count(found.matching, "item", "items");
  $("end").textContent = items.done && found.matching === 0 ? "No item passes the filters." : "";
  return true;
}

async function moreHits(step) {
  const have = step.answer.hits.length;
  const wanted = Math.min(3 * have, about.limits.k);
  if (wanted <= have || have < PAGE || step.full) return false;
  const answer = await answerOf(step, wanted);
  if (step !== shown) return true;
  step.full = answer.hits.length < wanted || wanted === about.limits.k;
  step.answer = answer;
  showEnd(answer.hits.length);
  addHits(answer.hits, have, answer.reference_id, (card, hit) => whyOf(card, hit, step));
  say(`${count(answer.hits.length, "picture", "pictures")} shown.`);
  return true;
}

// ---- beginning

async function begin() {
  try {
    about = await getJson("v1/info");
  } catch (error) {
    return problem(error, begin);
  }
  $("about").textContent = `${count(about.gallery.items, "picture", "pictures")}${about.domain ? `, ${about.domain}` : ""}`;
  $("key").hidden = !hasKey();
  if (about.terms.length === 2) {
    $("balance-first").textContent = termName(about.terms[0]);
    $("balance-second").textContent = termName(about.terms[1]);
    $("balance-box").hidden = false;
  }
  useOf({ pick: about.needs_image ? pick : null, more: about.needs_text ? "More like this, but …" : "More like this" });
  $("text").closest(".ask").hidden = !about.needs_text;
  $("reference").hidden = !about.needs_image;
  if (!about.needs_text) $("text-label").textContent = "What should be like it?";
  if (!about.needs_image) {
    $("text-label").textContent = "What are you looking for?";
    $("text").placeholder = "";
  }
  try {
    showFilters((await getJson("v1/fields")).fields, changed);
  } catch (error) {
    problem(error);
  }
  await goTo(stepOf(location.search));
}

// Filters and balance hold for what is shown, at once.
function changed() {
  const where = readFilters(), balance = Number($("balance").value);
  if (shown?.answer) return ask({ reference: shown.reference, text: shown.text, where, balance }, steps.slice(0, steps.indexOf(shown)), true);
  const step = { reference: shown.reference, text: shown.text, where, balance };
  keep(step, true);
  list(step);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
$("balance").addEventListener("change", () => shown?.answer && changed());
for (const id of ["file", "camera"])
  $(id).addEventListener("change", (event) => {
    if (event.target.files.length) useFile(event.target.files[0]);
    event.target.value = "";
  });
$("random").addEventListener("click", async () => {
  if (about === null) return begin();
  fine();
  try {
    const where = readFilters();
    const found = await getJson(`v1/items?order=random&limit=1${where ? `&where=${encodeURIComponent(JSON.stringify(where))}` : ""}`);
    if (found.items.length) pick(found.items[0]);
    else problem(new Problem({ title: "There is nothing", detail: "No item passes the filters." }));
  } catch (error) {
    problem(error);
  }
});
$("key").addEventListener("click", () => askForKey(""));
$("key-form").addEventListener("submit", () => {
  useKey($("key-input").value.trim());
  $("key-input").value = "";
  fine();
  begin();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is in the clipboard.");
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy link"), 1500);
  } catch {
    problem(new Problem({ title: "The link could not be copied", detail: `It is the address of this page: ${location.href}` }));
  }
});
$("home").addEventListener("click", (event) => {
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  if (about === null) return begin();
  steps = [];
  goTo({ reference: null, text: "", where: null, balance: 0 }, true);
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("results").focus();
});
addEventListener("popstate", ({ state }) => {
  if (shown === null) return;
  if (state === null) keep(shown, true); // somebody's fragment: what is shown stays
  else goTo(kept(state));
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((entry) => entry.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  useFile(file);
});
let inside = 0;
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => carriesFiles(event) && ((inside += 1), ($("drop").hidden = about?.needs_image === false)));
addEventListener("dragleave", (event) => carriesFiles(event) && ((inside -= 1), ($("drop").hidden = inside <= 0)));
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  inside = 0;
  $("drop").hidden = true;
  if (event.dataTransfer.files.length) useFile(event.dataTransfer.files[0]);
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    clearWhy();
    fine();
  }
  if (event.key === "/" && !/^(input|select|textarea)$/i.test(document.activeElement?.tagName ?? "")) {
    event.preventDefault();
    $("text").focus();
  }
});
new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: `${AHEAD}px` }).observe($("end"));

begin();
