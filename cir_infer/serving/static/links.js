// A search as the address of this page, and back.

export function linkOf(step) {
  const query = new URLSearchParams();
  if (step.reference?.id !== undefined) query.set("item", step.reference.id);
  if (step.text) query.set("text", step.text);
  if (step.where) query.set("where", JSON.stringify(step.where));
  if (step.balance) query.set("balance", String(step.balance));
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

// A whole number beyond 2^53 would be another one here, and the search another search.
function inexact(text) {
  const numbers = text.replace(/"(\\.|[^"\\])*"/g, "").match(/-?\d[\d.eE+-]*/g) ?? [];
  return numbers.some((one) => /^-?\d+$/.test(one) && !Number.isSafeInteger(Number(one)));
}

// Of a name that an object has twice the first condition would be lost.
function twice(text, where) {
  const names = [...text.matchAll(/"(?:\\.|[^"\\])*"(\s*:)?/g)].filter((one) => one[1]).length;
  const held = (value) => (value === null || typeof value !== "object" ? 0 : Object.values(value).reduce((sum, one) => sum + held(one), Array.isArray(value) ? 0 : Object.keys(value).length));
  return names !== held(where);
}

// Every entry of the browser's history names its search: a place among the searches is another's after the next one, and
// after a reload. One that was not asked here, as before a reload, is what its address says.

const known = new Map();

export function keep(step, instead) {
  step.key ??= `${performance.timeOrigin} ${known.size}`;
  known.set(step.key, step);
  history[instead ? "replaceState" : "pushState"]({ key: step.key }, "", step.unread ? undefined : linkOf(step));
}

export const kept = (state) => known.get(state.key) ?? stepOf(location.search);

export function stepOf(search) {
  const query = new URLSearchParams(search);
  const step = { reference: null, text: query.get("text") ?? "", where: null, balance: Number(query.get("balance")) || 0 };
  if (query.has("item")) step.reference = { id: query.get("item") };
  step.unread = query.has("where") ? "It is no filter." : null;
  try {
    const text = query.get("where") ?? "null", where = JSON.parse(text);
    if (where !== null && typeof where === "object" && !Array.isArray(where)) {
      step.unread = inexact(text) ? "A number in it has more digits than this page can hold." : twice(text, where) ? "It has one name twice." : null;
      if (step.unread === null) step.where = where;
    }
  } catch { /* somebody changed it */ }
  step.balance = Math.min(1, Math.max(-1, step.balance));
  return step;
}
