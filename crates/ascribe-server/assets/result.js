// The answer of one attribution as elements: sentence, strip, tokens, verbatim runs, shares, records, receipt.

import {
  bar, charMap, chip, count, datasetLink, h, isHan, licenceName, ordinal, percent, plural, range, short, signed, significant, spoken, switchOf, voice,
} from "./kit.js";

/** Rows of the table of shares; what is left is one row. */
const SHARES_SHOWN = 12;
/** Rows of the table of tokens. */
const TOKENS_SHOWN = 15;
/** Letters from which on a record is folded. */
const LONG = 700;

/** The whole answer. `asked` is what was sent, `book` the datasets by id. */
export function answerView(answer, asked, book, elapsedMs) {
  const shares = [...(answer.shares ?? [])].sort((a, b) => b.share - a.share);
  const noisy = isNoisy(answer);
  const rows = shares.map((share) => ({ ...share, index: book.get(share.dataset_id)?.index, about: book.get(share.dataset_id) ?? {} }));
  return [
    h(
      "section.wrap.answer",
      { "aria-labelledby": "answer-h" },
      h("h2.verdict-line", { id: "answer-h", tabindex: "-1" }, sentence(rows)),
      facts(answer, elapsedMs),
      noisy && h("p.noise", {}, "Too noisy to pay: the intervals of these shares are wider than the policy allows, so no owner is paid for this response. The shares below are shown as what they are, a guess."),
      strip(rows, answer.coverage, noisy),
    ),
    h("div.wrap.cols", {}, response(answer, asked, book), shareTable(rows)),
    records(answer.hits ?? [], book),
    h("div.wrap", {}, slip(answer)),
  ];
}

/** One line for ears. */
export function summary(answer) {
  const shares = [...(answer.shares ?? [])].sort((a, b) => b.share - a.share).slice(0, 3);
  const parts = shares.map((s) => `${s.dataset} ${percent(s.share, 0)}`);
  return `Traced. ${parts.join(", ")}. ${isNoisy(answer) ? "Too noisy to pay." : ""} ${plural((answer.hits ?? []).length, "record")} found.`;
}

const verdictName = (answer) => answer.verdict ?? "";
const isNoisy = (answer) => /nois/i.test(verdictName(answer));
const title = (row) => row.about.title ?? row.dataset;

/** What the shares say, no surer than their intervals. */
function sentence(rows) {
  const [first, second, third] = rows;
  if (!first || first.share <= 0) return ["No registered dataset is known to have caused this response."];
  const name = (row) => h("em", {}, title(row));
  if (!second || first.low > 0.5) return ["Mostly from ", name(first), "."];
  if (first.low > second.high) return ["More from ", name(first), " than from any other dataset."];
  if (third && third.high > first.low) return ["Several datasets share in this response; the first, ", name(first), ", does not stand out."];
  return [name(first), " and ", name(second), " share in this response, too close to tell which did more."];
}

function facts(answer, elapsedMs) {
  const fact = (label, value, more) => value !== undefined && value !== null && h("span", { title: more }, `${label} `, h("b", {}, value));
  const approx = answer.approx ?? {};
  const recall = typeof approx.recall === "number" ? `, recall ${percent(approx.recall, approx.recall === 1 ? 0 : 1)}` : "";
  const generation = answer.index?.generation;
  return h(
    "p.facts",
    {},
    badge(answer),
    typeof answer.coverage === "number" && fact("Coverage", percent(answer.coverage), "The part of a response that retraining says is attributed right; the rest is paid to nobody."),
    fact("Method", answer.method),
    approx.mode && fact("Search", `${approx.mode}${recall}`),
    fact("Model", answer.model),
    generation && fact("Generation", h("code", {}, short(generation)), generation),
    answer.spec_hash && fact("Feature spec", h("code", {}, short(answer.spec_hash)), answer.spec_hash),
    fact("Answered in", `${significant(elapsedMs)} ms`),
  );
}

function badge(answer) {
  const name = verdictName(answer);
  if (name === "payable") return h("span.badge", {}, "✓ Payable");
  const words = isNoisy(answer) ? "Too noisy to pay" : name ? name[0].toUpperCase() + name.slice(1) : "Not measured";
  return h("span.badge.warn", {}, `⚠ ${words}`);
}

/** The shares as they would be paid: scaled by coverage, what is left stays unattributed. */
function strip(rows, coverage, noisy) {
  const covered = typeof coverage === "number" ? Math.max(0, Math.min(1, coverage)) : 1;
  const segments = rows.filter((row) => row.share * covered >= 0.004);
  const shown = segments.reduce((sum, row) => sum + row.share * covered, 0);
  const segment = (row) =>
    h(`li.c${(row.index ?? 0) % 12}`, { at: { flex: `${row.share * covered} 1 0` }, title: `${title(row)}: ${percent(row.share * covered)}` },
      h("span", {}, percent(row.share * covered, 0)), spoken(` ${title(row)}`));
  const left = Math.max(0, 1 - shown);
  return h(
    "div",
    {},
    h("ul.strip", { "aria-label": "Shares scaled by coverage", class: noisy && "noisy" },
      segments.map(segment),
      left > 0.002 && h("li.left", { at: { flex: `${left} 1 0` } }, h("span", {}, percent(left, 0)), spoken(" unattributed"))),
    h("p.strip-note.fine", {}, h("span", {}, noisy ? "What each dataset would be due if it were sure enough" : "What each dataset is due of the response"), h("span", {}, "striped: unattributed, paid to nobody")),
  );
}

/** What is told: the response, and where its tokens say something else (a window cuts letters at its ends), those. */
function toldText(answer, asked) {
  const whole = (answer.tokens ?? []).map((t) => t.text ?? "").join("");
  return asked.completion.startsWith(whole) ? asked.completion : whole;
}

/** Ranges `[from, to)` of tokens in the text, in units of the script's strings, with their influence. */
export function tokenRuns(tokens) {
  const runs = [];
  let from = 0;
  for (const { text = "", influence = 0, dataset } of tokens) {
    const to = from + text.length;
    // A token without a letter of its own (a part of one) adds to the token before it.
    if (to > from) runs.push({ from, to, influence, dataset });
    else if (runs.length) runs.at(-1).influence += influence;
    from = to;
  }
  return runs;
}

/** How strong a token is drawn, from the strongest of the response. */
function level(influence, strongest) {
  const part = strongest > 0 ? Math.abs(influence) / strongest : 0;
  const step = part < 0.04 ? 0 : Math.min(5, 1 + Math.floor(part * 5));
  return step === 0 ? "" : `${influence > 0 ? "p" : "n"}${step}`;
}

const visible = (text) => text.replaceAll("\n", "⏎").replace(/^ | $/g, "␣");

function response(answer, asked, book) {
  const text = toldText(answer, asked);
  const runs = tokenRuns(answer.tokens ?? []);
  const at = charMap(text);
  const spans = (answer.verbatim ?? []).map((span, index) => ({ ...span, from: at(span.start), to: at(span.end), number: index + 1 }));
  const strongest = Math.max(0, ...runs.map((run) => Math.abs(run.influence)));
  const order = [...runs.keys()].sort((a, b) => Math.abs(runs[b].influence) - Math.abs(runs[a].influence));
  order.forEach((run, rank) => { runs[run].rank = rank + 1; });
  const language = book.get((answer.shares ?? []).reduce((a, b) => (b.share > (a?.share ?? -1) ? b : a), null)?.dataset_id)?.language;
  const told = h("p.told", { ...(isHan(text) ? { lang: "zh" } : voice(language)), dir: "auto", id: "told" });
  const readout = h("p.readout", { "aria-live": "polite" });
  told.append(spoken("Prompt: "), h("span.given", {}, asked.prompt), spoken(" Response: "), ...pieces(text, runs, spans, strongest));
  walkTokens(told, runs, readout);
  const layers = [["both", "Both"], ["influence", "Influence"], ["verbatim", "Verbatim"]];
  const show = (layer) => {
    told.classList.toggle("no-influence", layer === "verbatim");
    told.classList.toggle("no-verbatim", layer === "influence");
  };
  return h(
    "section",
    { "aria-labelledby": "told-h" },
    h("div.block-h", {}, h("h3", { id: "told-h" }, "The response, token by token"), runs.length > 0 && spans.length > 0 && switchOf("layer", "Marks shown", layers, "both", show)),
    told,
    runs.length ? readout : h("p.fine", {}, "This method gives no influence of single tokens."),
    h("p.legend", { "aria-hidden": "true" },
      runs.length > 0 && h("span", {}, h("span.t.p5", {}, "raises"), " influence"), runs.some((r) => r.influence < 0) && h("span", {}, h("span.t.n4", {}, "lowers"), " it"),
      spans.length > 0 && h("span", {}, h("span.verb", {}, "boxed"), " word for word in a record")),
    runs.length > 0 && tokenTable(text, runs, order),
    spans.length > 0 && verbatimList(text, spans, book),
  );
}

/** The response in pieces: a box for every verbatim run, tokens inside and outside of it. */
function pieces(text, runs, spans, strongest) {
  const cuts = new Set([0, text.length]);
  for (const { from, to } of [...runs, ...spans]) cuts.add(from).add(to);
  const ordered = [...cuts].sort((a, b) => a - b);
  const out = [];
  let [box, owner, run] = [null, null, 0];
  for (let i = 0; i + 1 < ordered.length; i += 1) {
    const [from, to] = [ordered[i], ordered[i + 1]];
    while (run < runs.length && runs[run].to <= from) run += 1;
    const token = run < runs.length && runs[run].from <= from ? runs[run] : null;
    const piece = h("span", { class: ["t", token && level(token.influence, strongest)].filter(Boolean).join(" "), "data-run": token ? String(run) : null }, text.slice(from, to));
    const span = spans.find((s) => s.from <= from && s.to >= to) ?? null;
    if (span !== owner) {
      if (box) box.append(mark(owner));
      box = span && h("span.verb", { "data-span": String(span.number) });
      owner = span;
      if (box) out.push(box);
    }
    (box ?? { append: (x) => out.push(x) }).append(piece);
  }
  if (box) box.append(mark(owner));
  return out;
}

const mark = (span) => h("sup", {}, h("a", { href: `#verbatim-${span.number}`, "data-jump": `verbatim-${span.number}`, "aria-label": `verbatim run ${span.number}` }, String(span.number)));

/** Pointer, touch and arrow keys move over tokens; the line below says what the token does. */
function walkTokens(told, runs, readout) {
  if (!runs.length) return;
  const hint = "Point at a token, or move with the arrow keys.";
  readout.textContent = hint;
  let now = -1;
  const go = (next) => {
    told.querySelectorAll(".now").forEach((one) => one.classList.remove("now"));
    now = next;
    const parts = told.querySelectorAll(`[data-run="${now}"]`);
    if (!parts.length) return;
    parts.forEach((one) => one.classList.add("now"));
    const { influence, rank, dataset } = runs[now];
    readout.replaceChildren(h("b", {}, visible([...parts].map((p) => p.textContent).join(""))), ` ${signed(influence)} influence, ${ordinal(rank)} of ${count(runs.length)}${dataset ? `, most from ${dataset}` : ""}`);
  };
  told.addEventListener("pointerover", (event) => {
    const token = event.target.closest("[data-run]");
    if (token) go(Number(token.dataset.run));
  });
  told.addEventListener("click", (event) => {
    const token = event.target.closest("[data-run]");
    if (token && !event.target.closest("a")) go(Number(token.dataset.run));
  });
  told.tabIndex = 0;
  told.setAttribute("role", "group");
  told.setAttribute("aria-label", "Prompt and response. Arrow keys move from token to token.");
  told.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || event.target !== told) return;
    event.preventDefault();
    go(Math.max(0, Math.min(runs.length - 1, now + step)));
  });
}

function tokenTable(text, runs, order) {
  const row = (index) => {
    const run = runs[index];
    return h("tr", {}, h("td.n", {}, String(run.rank)), h("td", {}, h("span.mono", {}, visible(text.slice(run.from, run.to)))), h("td.n", {}, signed(run.influence)));
  };
  return h("details", {}, h("summary", {}, "Tokens by influence"),
    h("table", {}, h("caption.vh", {}, "Tokens of largest influence, first to last"),
      h("thead", {}, h("tr", {}, h("th.n", { scope: "col" }, "Place"), h("th", { scope: "col" }, "Token"), h("th.n", { scope: "col" }, "Influence"))),
      h("tbody", {}, order.slice(0, TOKENS_SHOWN).map(row))));
}

function verbatimList(text, spans, book) {
  const source = (s) => {
    const about = book.get(s.dataset_id) ?? {};
    const words = [about.title ?? s.dataset, s.record_id && `record ${s.record_id}`, s.count > 1 && `${count(s.count)} places`].filter(Boolean);
    return h("span", {}, s.dataset_id ? datasetLink(s.dataset_id, words[0]) : words[0], words.length > 1 ? `, ${words.slice(1).join(", ")}` : "");
  };
  const item = (span) => {
    const sources = (span.sources ?? []).slice(0, 4).flatMap((s, index) => (index ? ["; ", source(s)] : [source(s)]));
    const more = (span.sources ?? []).length - 4;
    return h("li", { id: `verbatim-${span.number}`, tabindex: "-1" }, h("span.verb-no", { "aria-hidden": "true" }, String(span.number)),
      h("div", {}, h("q", { lang: isHan(text) ? "zh" : null }, text.slice(span.from, span.to).trim()), h("div.fine", {}, "stands in ", sources, more > 0 ? ` and ${more} more` : "")));
  };
  return h("div.found", {}, h("h3", {}, "Word for word in training records"), h("ol", {}, spans.map(item)));
}

function shareTable(rows) {
  const full = Math.max(0.25, Math.ceil(Math.max(0, ...rows.map((row) => row.high ?? row.share)) * 4) / 4);
  const row = (one) =>
    h("tr", {},
      h("th", { scope: "row" }, h("span.set", {}, chip(one.index), h("span", {}, datasetLink(one.dataset_id, title(one)), h("small", {}, [one.owner, licenceName(one.licence)].filter(Boolean).join(" · "))))),
      h("td.axis", {}, bar(one.index, one.share, one.low, one.high, full)),
      h("td.n", {}, h("b", {}, percent(one.share)), typeof one.low === "number" && h("small", {}, spoken(" between "), range(one.low, one.high))));
  const rest = rows.slice(SHARES_SHOWN);
  const left = rest.reduce((sum, one) => sum + one.share, 0);
  return h(
    "section",
    { "aria-labelledby": "shares-h" },
    h("div.block-h", {}, h("h3", { id: "shares-h" }, "Shares of the datasets")),
    rows.length === 0
      ? h("p.fine", {}, "No dataset has a share in this response.")
      : h("table.shares", {},
        h("caption.vh", {}, "Share of each dataset with its interval, owner and licence"),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Dataset, owner and licence"), h("th.axis", { scope: "col" }, h("span.ends", {}, h("span", {}, "0"), spoken(" to "), h("span", {}, percent(full, 0)))), h("th.n", { scope: "col" }, "Share", h("small", {}, "and interval")))),
        h("tbody", {}, rows.slice(0, SHARES_SHOWN).map(row),
          rest.length > 0 && h("tr", {}, h("th", { scope: "row" }, h("span.set", {}, chip(), plural(rest.length, "other dataset"))), h("td.axis", {}, bar(undefined, left, undefined, undefined, full)), h("td.n", {}, h("b", {}, percent(left)))))),
  );
}

/** A record's text with its spans marked. */
function marked(text, spans) {
  const at = charMap(text);
  const ordered = spans.map((s) => [at(s.start), at(s.end)]).sort((a, b) => a[0] - b[0]);
  const out = [];
  let position = 0;
  for (const [start, end] of ordered) {
    const from = Math.max(start, position);
    if (end <= from) continue;
    out.push(text.slice(position, from), h("mark.spanned", {}, text.slice(from, end)));
    position = end;
  }
  return [...out, text.slice(position)];
}

function records(hits, book) {
  if (hits.length === 0) return null;
  return h("section.wrap.records", { "aria-labelledby": "records-h" },
    h("div.block-h", {}, h("h2", { id: "records-h" }, "The training records behind it"), h("span.fine", {}, "highlighted: the part that the model was trained on in the example that counts")),
    h("ol.cards", {}, hits.map((hit, index) => card(hit, index, book.get(hit.dataset_id) ?? {}))));
}

function card(hit, place, about) {
  const name = about.title ?? hit.dataset;
  // An example may hold parts of several records; offsets are those of each record's own text.
  const own = (hit.spans ?? []).filter((span) => span.record_id === hit.record_id);
  const others = (hit.spans ?? []).filter((span) => span.record_id !== hit.record_id);
  const body = typeof hit.text === "string"
    ? h("blockquote.text", { ...voice(about.language), dir: "auto" }, marked(hit.text, own))
    : h("p.withheld", {}, "Its text is not shown: the licence does not permit it. The record's id stands below.");
  const long = typeof hit.text === "string" && hit.text.length > (isHan(hit.text) ? LONG / 2 : LONG);
  const more = long && h("button.link", { type: "button", "aria-expanded": "false", onclick: () => {
    const folded = body.classList.toggle("clamp");
    more.setAttribute("aria-expanded", String(!folded));
    more.firstChild.data = folded ? "Show the whole record" : "Show less";
  } }, "Show the whole record", spoken(` ${hit.record_id}`));
  if (long) body.classList.add("clamp");
  return h(`li.card${about.index === undefined ? "" : `.c${about.index % 12}`}`, {},
    h("p.who", {}, chip(about.index), h("b", {}, spoken(`Record ${place + 1}, from `), name), h("span.score", {}, spoken("influence score "), signed(hit.score))),
    body, more, others.length > 0 && neighbours(others, about),
    h("p.fine", {}, h("code", {}, hit.record_id), " · ", hit.owner ?? about.owner ?? "", " · ", licenceName(hit.licence ?? about.licence) ?? "", hit.dataset_id && [" · ", datasetLink(hit.dataset_id, "dataset")]));
}

/** What else stood in the same training example. */
function neighbours(spans, about) {
  const item = (span) => h("li", {}, h("code", {}, span.record_id), typeof span.text === "string" && h("blockquote.text", { ...voice(about.language), dir: "auto" }, h("mark.spanned", {}, span.text)));
  return h("details", {}, h("summary", {}, `${plural(spans.length, "other record")} in the same example`), h("ul.others", {}, spans.map(item)));
}

function slip(answer) {
  const id = answer.receipt ? answer.id : null;
  if (answer.receipt_error) return h("div.slip.none", {}, h("p", {}, h("b", {}, "No receipt: "), answer.receipt_error));
  if (!id) return h("div.slip.none", {}, h("p", {}, "No receipt was asked for: nothing of this answer is logged or paid. Tick ", h("b", {}, "Sign a receipt"), " above for one that counts."));
  return h("div.slip", {}, h("p", {}, h("b", {}, "Signed receipt")), h("p", {}, h("code", {}, id)), h("p", {}, h("a", { href: `#/receipts/${encodeURIComponent(id)}` }, "Look at it and check its signature")));
}
