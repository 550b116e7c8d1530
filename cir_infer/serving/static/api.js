// The service, as the page asks it. A key is sent where there is one, and pictures come the same way then.

let key = sessionStorage.getItem("cir-key") ?? "";

export class Problem extends Error {
  constructor(document) {
    super(document.detail ?? "The service did not answer.");
    this.title = document.title ?? "That did not work";
    this.status = document.status ?? 0;
  }
}

export function useKey(text) {
  key = text;
  sessionStorage.setItem("cir-key", text);
}

export const hasKey = () => key !== "";

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The service cannot be reached", detail: "Is it still running? Check the connection and try again." });
  }
  if (response.ok) return response;
  let document = { title: `The service answered ${response.status}`, status: response.status };
  try {
    document = { ...document, ...(await response.json()) };
  } catch { /* a proxy's page */ }
  throw new Problem(document);
}

export const getJson = async (path) => (await request(path)).json();

async function ask(path, query, file, signal) {
  let options;
  if (file) {
    const form = new FormData();
    form.append("image", file, "image");
    for (const [name, value] of Object.entries(query)) {
      if (Array.isArray(value)) value.forEach((part) => form.append(name, part));
      else form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
    }
    options = { method: "POST", body: form, signal };
  } else {
    options = { method: "POST", body: JSON.stringify(query), headers: { "Content-Type": "application/json" }, signal };
  }
  return (await request(path, options)).json();
}

export async function search(query, file, signal) {
  performance.mark("asked");
  const answer = await ask("v1/search", query, file, signal);
  performance.mark("answered");
  return answer;
}

export const explain = (query, file) => ask("v1/explain", query, file);

// What an <img> can show of an item's picture: its address, or with a key, the picture itself.
export async function pictureAddress(path, size) {
  const address = `${path.replace(/^\//, "")}&size=${size}`;
  if (!key) return address;
  return URL.createObjectURL(await (await request(address)).blob());
}
