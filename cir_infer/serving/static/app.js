// The page: a picture, what should be different about it, and the way from one answer to the next.

import { getJson, hasKey, pictureAddress, Problem, search, useKey } from "./api.js";
import { $, count, el, termName } from "./dom.js";
import { readFilters, showFilters, writeFilters } from "./filters.js";
import { linkOf, stepOf } from "./links.js";
import { addHits, addItems, clearGrid } from "./results.js";
import { addWhy, clearWhy } from "./why.js";

const PAGE = 24;
const AHEAD = 600; // pixels below the window that are filled already
let about = null; // what /v1/info says
let reference = null; // { id, image } of the gallery, or { file, url } of one's own
let steps = []; // the searches, each with its answer
let at = -1; // the one that is shown
let browsing = null; // { after, where } while items are listed
let asking = null; // what stops the request that is under way
let filling = false;

// ---- what is told

function problem(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 401) return askForKey(hasKey() ? "This key is not known." : "");
  if (!(error instanceof Problem)) console.error(error);
  const title = error.title ?? "The page failed";
  $("problem").replaceChildren(el("strong", {}, title), error.message);
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

async function answerOf(step, k) {
  asking?.abort();
  asking = new AbortController();
  return search(queryOf(step, Math.min(k, about.limits.k)), step.reference?.file, asking.signal);
}

async function find() {
  if (about === null) return;
  fine();
  if (reference === null && about.needs_image) return problem(new Problem({ title: "A picture is missing", detail: "Choose one, drop or paste one, or start from one of those below." }));
  const text = $("text").value.trim();
  if (text === "" && about.needs_text) {
    say("Say what should be different.");
    $("text").focus();
    return problem(new Problem({ title: "The words are missing", detail: "Say what should be different about the picture, for example “is red”." }));
  }
  const step = { reference, text, where: readFilters(), balance: Number($("balance").value) };
  $("grid").classList.add("old");
  $("go").disabled = true;
  try {
    step.answer = await answerOf(step, PAGE);
  } catch (error) {
    return problem(error);
  } finally {
    $("go").disabled = false;
  }
  // Words, filters and balance that are changed for the same picture take the place of the search before.
  const same = at >= 0 && steps[at].reference === step.reference && steps[at].text === step.text;
  steps = [...steps.slice(0, same ? at : at + 1), step];
  at = steps.length - 1;
  history[same ? "replaceState" : "pushState"]({ at }, "", linkOf(step));
  show(step);
}

function show(step) {
  browsing = null;
  clearWhy();
  clearGrid();
  const { answer } = step;
  addHits(answer.hits, 0, answer.reference_id, pick, (card, hit) => whyOf(card, hit, step));
  performance.mark("drawn");
  performance.measure("answer to drawing", "answered", "drawn");
  $("results-title").textContent = answer.hits.length ? (step.text ? `“${step.text}”` : "Found") : "Nothing fits";
  showTiming(answer.timing);
  $("end").textContent = answer.hits.length ? "" : "No item passes the filters.";
  $("unknown").hidden = answer.unknown_words.length === 0;
  $("unknown").textContent = answer.unknown_words.length ? `The model does not know: ${answer.unknown_words.join(", ")}. Unknown words count as one and the same.` : "";
  $("copy").hidden = step.reference?.id === undefined;
  $("text").value = step.text;
  $("balance").value = step.balance;
  writeFilters(step.where);
  document.title = step.text ? `${step.text} · cir` : "Composed image retrieval";
  showTrail();
  say(answer.hits.length ? `${count(answer.hits.length, "picture", "pictures")} found.` : "Nothing was found.");
}

const whyOf = (card, hit, step) => about.explains && hit.image && addWhy(card, hit, step, () => queryOf(step, 1), problem);

function showTiming(timing) {
  const parts = ["decode", "wait", "search"].filter((name) => timing[name] >= 0.1).map((name) => `${name} ${timing[name].toFixed(1)}`);
  $("timing").textContent = `${timing.total.toFixed(0)} ms (${parts.join(", ")})`;
}

function showTrail() {
  $("trail-box").hidden = steps.length === 0;
  $("trail").replaceChildren(
    ...steps.map((step, number) => {
      const picture = step.reference?.url ? el("img", { src: step.reference.url, alt: "" }) : el("span", { class: "none" });
      const button = el("button", { type: "button", onclick: () => goTo(number), "aria-current": number === at ? "step" : null }, picture, el("span", {}, step.text || "this picture"));
      return el("li", {}, button);
    }),
  );
  $("trail").children[at]?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

async function goTo(number, push = true) {
  asking?.abort();
  fine();
  at = number;
  const step = steps[at];
  await setReference(step.reference);
  if (push) history.pushState({ at }, "", linkOf(step));
  show(step);
}

// ---- browsing

async function browse() {
  at = -1;
  browsing = { after: null, where: readFilters(), done: false };
  clearGrid();
  $("results-title").textContent = "Start from one of these";
  $("timing").textContent = "";
  $("copy").hidden = true;
  showTrail();
  await more();
}

async function more() {
  if (filling || about === null) return;
  filling = true;
  const had = $("grid").children.length;
  try {
    if (browsing !== null) await moreItems(browsing);
    else if (at >= 0) await moreHits(steps[at]);
  } catch (error) {
    problem(error);
  } finally {
    filling = false;
  }
  // The observer tells only of changes, and the end may still be near.
  if ($("grid").children.length > had && $("end").getBoundingClientRect().top < innerHeight + AHEAD) more();
}

async function moreItems(list) {
  if (list.done) return;
  const query = new URLSearchParams({ limit: PAGE });
  if (list.where) query.set("where", JSON.stringify(list.where));
  if (list.after) query.set("after", list.after);
  const found = await getJson(`v1/items?${query}`);
  if (list !== browsing) return;
  list.after = found.after;
  list.done = found.after === null;
  addItems(found.items, pick);
  $("timing").textContent = count(found.matching, "item", "items");
  $("end").textContent = list.done && found.matching === 0 ? "No item passes the filters." : "";
}

async function moreHits(step) {
  const have = step.answer.hits.length;
  const wanted = Math.min(3 * have, about.limits.k);
  if (wanted <= have || have < PAGE || step.whole) return;
  const answer = await answerOf(step, wanted);
  if (step !== steps[at]) return;
  step.whole = answer.hits.length < wanted || wanted === about.limits.k;
  step.answer = answer;
  addHits(answer.hits, have, answer.reference_id, pick, (card, hit) => whyOf(card, hit, step));
  say(`${count(answer.hits.length, "picture", "pictures")} shown.`);
}

// ---- beginning

async function begin() {
  try {
    about = await getJson("v1/info");
  } catch (error) {
    return problem(error);
  }
  $("about").textContent = `${count(about.gallery.items, "picture", "pictures")}${about.domain ? `, ${about.domain}` : ""}`;
  $("key").hidden = !hasKey();
  if (about.terms.length === 2) {
    $("balance-first").textContent = termName(about.terms[0]);
    $("balance-second").textContent = termName(about.terms[1]);
    $("balance-box").hidden = false;
  }
  $("text").closest(".ask").hidden = !about.needs_text;
  try {
    showFilters((await getJson("v1/fields")).fields, changed);
  } catch (error) {
    problem(error);
  }
  const step = stepOf(location.search);
  if (!step.reference && !step.where && !step.unread) return browse();
  writeFilters(step.where);
  $("balance").value = step.balance;
  $("text").value = step.text;
  if (step.reference) await setReference(step.reference);
  // Not asked without it: whoever sent the link meant other answers.
  if (step.unread) return browse().then(() => problem(new Problem({ title: "The filter of this link cannot be read", detail: `${step.unread} Without it “Find” answers.` })));
  if (step.reference && (step.text || !about.needs_text)) return find();
  await browse();
}

// Filters and balance hold for what is shown, at once.
function changed() {
  if (browsing !== null) browse();
  else if (at >= 0) {
    $("text").value = steps[at].text;
    reference = steps[at].reference;
    setReference(reference);
    find();
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
$("balance").addEventListener("change", changed);
for (const id of ["file", "camera"])
  $(id).addEventListener("change", (event) => {
    if (event.target.files.length) useFile(event.target.files[0]);
    event.target.value = "";
  });
$("random").addEventListener("click", async () => {
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
  steps = [];
  setReference(null);
  $("text").value = "";
  $("balance").value = 0;
  writeFilters(null);
  history.pushState(null, "", location.pathname);
  fine();
  browse();
});
addEventListener("popstate", (event) => {
  const number = event.state?.at;
  if (number !== undefined && steps[number]) goTo(number, false);
  else if (about !== null) begin();
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((entry) => entry.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  useFile(file);
});
let inside = 0;
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => carriesFiles(event) && ((inside += 1), ($("drop").hidden = false)));
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
  if (event.key === "Escape") clearWhy();
  if (event.key === "/" && !/^(input|select|textarea)$/i.test(document.activeElement?.tagName ?? "")) {
    event.preventDefault();
    $("text").focus();
  }
});
new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: `${AHEAD}px` }).observe($("end"));

begin();
