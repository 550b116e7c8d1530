// Elements, made of text and never of HTML.

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// A number with so many decimal places; one that would have none of them as 2.3e-05, and zero as 0.
export function decimals(value, places) {
  if (value === 0) return "0";
  const text = value.toFixed(places);
  return /[1-9]/.test(text) ? text : value.toExponential(1).replace(/e(.)(\d)$/, (_, sign, digit) => `e${sign}0${digit}`);
}

export const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

const TERMS = new Map([["implicit_similarity", "like the picture"], ["explicit_matching", "as the words say"]]);
export const termName = (name) => TERMS.get(name) ?? name.replaceAll("_", " ");
