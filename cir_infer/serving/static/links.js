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

export function stepOf(search) {
  const query = new URLSearchParams(search);
  const step = { reference: null, text: query.get("text") ?? "", where: null, balance: Number(query.get("balance")) || 0 };
  if (query.has("item")) step.reference = { id: query.get("item") };
  try {
    step.where = JSON.parse(query.get("where") ?? "null");
  } catch { /* somebody changed it */ }
  if (step.where === null || typeof step.where !== "object" || Array.isArray(step.where)) step.where = null;
  step.balance = Math.min(1, Math.max(-1, step.balance));
  return step;
}
