// Small tools of the page: elements out of text, numbers in words, calls to the server. Nothing here writes markup.

/** An element: `h("p.fine", { id: "x" }, "text", child)`. Children that are null or false are left out. */
export function h(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") element.className = [element.className, value].filter(Boolean).join(" ");
    else if (key === "at") for (const [property, amount] of Object.entries(value)) element.style.setProperty(property, amount);
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Text for ears only. */
export const spoken = (text) => h("span.vh", {}, text);

const NARROW = "\u202f";
export const percent = (part, digits = 1) => `${(100 * part).toFixed(digits)}${NARROW}%`;
export const range = (low, high) => `${(100 * low).toFixed(1)}–${(100 * high).toFixed(1)}${NARROW}%`;
export const signed = (value, digits = 3) => `${value < 0 ? "−" : "+"}${significant(Math.abs(value), digits)}`;
export const count = (n) => n.toLocaleString("en-US").replaceAll(",", NARROW);

/** A number with so many digits that count, without an exponent where one can read it. */
export function significant(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return `${mantissa} × 10${[...String(Number(exponent))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`;
  }
  return Number(value.toPrecision(digits)).toString();
}

export const ordinal = (n) => `${n}${[, "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th"}`;
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const short = (digest) => (digest.length > 20 ? `${digest.slice(0, 12)}…${digest.slice(-6)}` : digest);

/** Offsets of the contract count characters (code points); a script's strings count units of UTF-16. One pass a text. */
export function charMap(text) {
  const units = [0];
  for (const letter of text) units.push(units.at(-1) + letter.length);
  return (offset) => units[Math.max(0, Math.min(offset, units.length - 1))];
}

/** Attributes of a text in the language of its dataset; code is not to be translated. */
export function voice(language) {
  if (!language) return {};
  if (language.startsWith("x-")) return { translate: "no", class: "code" };
  // Several languages in one text: the reader's system decides.
  return language.includes("-") && !/^[a-z]{2,3}-[A-Z]/.test(language) ? {} : { lang: language };
}

/** Looks like Chinese, Japanese or Korean: for texts whose dataset is not known. */
export const isHan = (text) => /\p{Script=Han}/u.test(text);

/** What the server said no with. */
export class Refusal extends Error {
  constructor(status, problem, retryAfter, requestId) {
    super(problem.detail || problem.title || `The server answered ${status}.`);
    this.status = status;
    this.problem = problem;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }
}

const KEY = "ascribe-key";
let askForKey = async () => null;
let asking = null;

/** Who asks the reader for a key when the server wants one. */
export const onKeyWanted = (ask) => { askForKey = ask; };

/** A call to the server: JSON in, JSON out, `Refusal` for everything but success. */
export async function call(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { accept: "application/json" };
    if (key) headers.authorization = `Bearer ${key}`;
    if (body) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal(0, { detail: "The server cannot be reached. Is it still running?" });
    }
    if (response.status === 401) {
      sessionStorage.removeItem(KEY);
      // Several calls may be refused at once; the reader is asked once.
      asking ??= askForKey(Boolean(key)).finally(() => { asking = null; });
      const given = await asking;
      if (given) {
        sessionStorage.setItem(KEY, given);
        continue;
      }
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) {
      const again = Number(response.headers.get("retry-after"));
      throw new Refusal(response.status, answer, Number.isFinite(again) ? again : 0, response.headers.get("x-request-id"));
    }
    return answer;
  }
}

/** An SPDX expression as people say it: `LicenseRef-` is a prefix for machines. */
export const licenceName = (licence) => licence?.replaceAll("LicenseRef-", "");

/** The registered datasets, asked for once: order decides letter and colour, as in the report. */
let book = null;
export function datasets() {
  book ??= call("/v1/datasets").then(
    (answer) => new Map((answer.datasets ?? []).map((row, index) => [row.dataset_id, { ...row, index }])),
    () => {
      book = null;
      return new Map();
    },
  );
  return book;
}

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/** The letter of a dataset in its colour; the name stands beside it, so ears are spared. */
export function chip(index) {
  if (index === undefined) return h("span.chip.c-rest", { "aria-hidden": "true" }, "·");
  const letter = index < 26 ? LETTERS[index] : LETTERS[Math.floor(index / 26) - 1] + LETTERS[index % 26];
  return h(`span.chip.c${index % 12}`, { "aria-hidden": "true" }, letter);
}

/** A bar with its whisker; the numbers stand beside it as text. */
export function bar(index, value, low, high, full) {
  const part = (x) => `${Math.max(0, Math.min(100, (100 * x) / full)).toFixed(2)}%`;
  return h(
    "span.track",
    { "aria-hidden": "true", at: { "--parts": String(Math.max(1, Math.round(full / 0.25))) } },
    h(`i.bar.${index === undefined ? "c-rest" : `c${index % 12}`}`, { at: { width: part(value) } }),
    low !== undefined && h("i.whisker", { at: { left: part(low), width: part(high - low) } }),
  );
}

/** A set of radio buttons that looks like one switch. */
export function switchOf(name, legend, options, chosen, onchange) {
  return h(
    "fieldset.switch",
    {},
    h("legend.vh", {}, legend),
    h("div", {}, options.map(([value, text]) =>
      h("label", {}, h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onchange(value) }), text))),
  );
}

export const datasetLink = (id, name) => (id ? h("a", { href: `#/datasets/${encodeURIComponent(id)}` }, name) : name);
