// The page's walk: which place is shown, what is asked, what came back. Places are fragments of the address, so that back,
// forward and bookmarks work: `#/`, `#/e/EXAMPLE`, `#/datasets`, `#/datasets/ID`, `#/receipts/ID`.

import { call, datasets, h, onKeyWanted, Refusal, short } from "./kit.js";
import { answerView, summary } from "./result.js";
import { datasetView, datasetsView, missing, receiptView } from "./places.js";

const $ = (id) => document.getElementById(id);
const { prompt, completion, example, another, k, receipt, go, ask, result, place, explore, status } = Object.fromEntries(
  ["prompt", "completion", "example", "another", "k", "receipt", "go", "ask", "result", "place", "explore", "status"].map((id) => [id, $(id)]),
);

let examples = [];
let underWay = null;
let lastAsked = null;

// --- places

async function route() {
  const [, name = "", id] = location.hash.split("/").map(decodeURIComponent);
  const at = ["datasets", "receipts"].includes(name) ? name : "explore";
  for (const link of document.querySelectorAll("[data-nav]")) {
    if (link.dataset.nav === at) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  explore.hidden = at !== "explore";
  place.hidden = at === "explore";
  if (at === "explore") {
    document.title = "Ascribe";
    if (name === "e" && id !== undefined) pickExample(id, true);
    return;
  }
  place.setAttribute("aria-busy", "true");
  const view = at === "receipts" ? receiptView(id ?? "") : id ? datasetView(id) : datasetsView();
  const here = location.hash;
  const shown = await view.catch((error) => missing(error));
  // Somebody went on while the server was thinking.
  if (location.hash !== here) return;
  place.replaceChildren(...shown.filter(Boolean));
  place.removeAttribute("aria-busy");
  const heading = place.querySelector("h1");
  document.title = `${heading?.textContent ?? "Ascribe"} · Ascribe`;
  heading?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

// --- what is asked

/** Fills the sheet with an example; `run` traces it at once, because its address says so. */
function pickExample(id, run) {
  const one = examples.find((e) => String(e.id) === String(id));
  if (!one) return;
  const same = lastAsked && lastAsked.prompt === one.prompt && lastAsked.completion === one.completion;
  example.value = String(one.id);
  prompt.value = one.prompt;
  completion.value = one.completion;
  if (run && !same) trace();
}

async function loadExamples() {
  const answer = await call("/v1/examples").catch(() => ({}));
  // Those whose licence forbids display have no words to pick from.
  examples = (answer.examples ?? []).filter((e) => e.completion);
  if (examples.length === 0) return;
  const titles = new Map([...(await datasets()).values()].map((row) => [row.dataset, row.title]));
  const groups = new Map();
  for (const one of examples) {
    const name = titles.get(one.dataset) ?? one.dataset;
    if (!groups.has(name)) groups.set(name, h("optgroup", { label: name }));
    const words = one.completion.replace(/\s+/g, " ").trim();
    groups.get(name).append(h("option", { value: String(one.id) }, `${one.id} · ${[...words].slice(0, 64).join("")}`));
  }
  example.replaceChildren(h("option", { value: "" }, "One of your own, below"), ...groups.values());
  $("pick").hidden = false;
}

async function loadState() {
  const state = $("state");
  try {
    const index = await call("/v1/index");
    state.textContent = [index.model, index.generation && `generation ${short(index.generation)}`].filter(Boolean).join(", ");
    methods(index.methods ?? []);
  } catch (error) {
    state.textContent = error.message;
    state.classList.add("off");
  }
}

function methods(list) {
  const named = list.map((m) => (typeof m === "string" ? { name: m } : m));
  if (named.length < 2) return;
  const chosen = named.find((m) => m.default) ?? named[0];
  $("method-list").replaceChildren(...named.map((m) =>
    h("label", { title: m.description ?? m.note }, h("input", { type: "radio", name: "method", value: m.name, checked: m === chosen }), m.title ?? m.name.replaceAll("_", " "))));
  $("methods").hidden = false;
}

// --- what came back

function complain(error) {
  const line = $("ask-error");
  line.replaceChildren();
  line.hidden = !error;
  if (!error) return;
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const mark = error.requestId ? ` (request ${error.requestId})` : "";
  line.append(`${error.message}${wait}${mark}`);
}

async function trace() {
  if (!completion.value.trim()) {
    complain(new Refusal(0, { detail: "Write the response that is to be traced." }));
    completion.focus();
    return;
  }
  underWay?.abort();
  const mine = new AbortController();
  underWay = mine;
  complain(null);
  go.setAttribute("aria-busy", "true");
  status.textContent = "Tracing…";
  const method = ask.elements.namedItem("method")?.value;
  const body = { k: Number(k.value), tokens: true, verbatim: true, receipt: receipt.checked };
  if (method) body.method = method;
  const said = { prompt: prompt.value, completion: completion.value };
  // A response of the corpus by its number: its very tokens, not those that its text would be cut into.
  const picked = examples.find((e) => String(e.id) === example.value);
  Object.assign(body, picked ? { example: picked.id } : said);
  const began = performance.now();
  try {
    const answer = await call("/v1/attributions", body, mine.signal);
    const elapsed = performance.now() - began;
    lastAsked = said;
    result.replaceChildren(...answerView(answer, said, await datasets(), elapsed).filter(Boolean));
    $("how").hidden = true;
    status.textContent = summary(answer);
    result.querySelector("h2")?.focus({ preventScroll: true });
    result.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "start" });
  } catch (error) {
    if (error.name === "AbortError") return;
    status.textContent = "";
    complain(error);
  } finally {
    if (underWay === mine) {
      go.removeAttribute("aria-busy");
      underWay = null;
    }
  }
}

// --- keys and buttons

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  trace();
});
ask.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    trace();
  }
});
// Another method or length of list is another answer to the same question.
ask.addEventListener("change", (event) => {
  if (event.target.name === "method" && lastAsked) trace();
});
example.addEventListener("change", () => {
  if (example.value === "") {
    prompt.value = completion.value = "";
    prompt.focus();
  } else location.hash = `#/e/${encodeURIComponent(example.value)}`;
});
another.addEventListener("click", () => {
  const others = examples.filter((e) => String(e.id) !== example.value);
  if (others.length) location.hash = `#/e/${encodeURIComponent(others[Math.floor(Math.random() * others.length)].id)}`;
});
for (const field of [prompt, completion]) {
  field.addEventListener("input", () => { example.value = ""; });
}
// A jump inside the answer is no place of its own.
result.addEventListener("click", (event) => {
  const jump = event.target.closest("[data-jump]");
  if (!jump) return;
  event.preventDefault();
  const target = $(jump.dataset.jump);
  target?.scrollIntoView({ block: "center" });
  target?.focus({ preventScroll: true });
});

onKeyWanted((wasWrong) => new Promise((resolve) => {
  const dialog = $("key-dialog");
  const done = (value) => {
    dialog.close();
    $("key").value = "";
    resolve(value);
  };
  $("key-h").textContent = wasWrong ? "This key was refused" : "This server asks for a key";
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    done($("key").value.trim() || null);
  };
  $("key-cancel").onclick = () => done(null);
  dialog.oncancel = () => resolve(null);
  if (!dialog.open) dialog.showModal();
}));

addEventListener("hashchange", route);
await Promise.all([loadState(), loadExamples()]);
route();
