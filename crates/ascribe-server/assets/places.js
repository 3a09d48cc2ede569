// Where links lead: the datasets, one dataset (reputation, what it earned), one receipt with its signature checked here.

import { bar, call, chip, count, datasetLink, datasets, h, licenceName, ordinal, percent, plural, significant, spoken } from "./kit.js";

const crumb = (href, text) => h("p.crumb", {}, h("a", { href }, `← ${text}`));
const heading = (...inside) => h("h1", { tabindex: "-1" }, ...inside);
const estimate = (e) => (typeof e === "number" ? significant(e) : e && typeof e.mean === "number" ? significant(e.mean) : null);
const between = (e) => (e && typeof e.low === "number" ? `${significant(e.low)} to ${significant(e.high)}` : null);

/** All registered datasets. */
export async function datasetsView() {
  const rows = [...(await datasets()).values()];
  const best = Math.max(0, ...rows.map((row) => row.reputation?.score ?? 0));
  const line = (row) =>
    h("tr", {},
      h("th", { scope: "row" }, h("span.set", {}, chip(row.index), h("span", {}, datasetLink(row.dataset_id, row.title ?? row.dataset), h("small", {}, row.dataset)))),
      h("td", {}, row.owner ?? ""),
      h("td", {}, licenceName(row.licence) ?? ""),
      h("td.n", {}, row.records === undefined ? "" : count(row.records)),
      h("td", {}, row.reputation ? [bar(row.index, row.reputation.score, undefined, undefined, best || 1), spoken(`score ${significant(row.reputation.score)}`)] : h("span.fine", {}, "not measured")),
      h("td.n", {}, responses(row) ?? ""),
      h("td.n", {}, money(row.earned) || "0"));
  return [
    h("div.place-h", {}, heading("Registered datasets"), h("p.lead", {}, "Every answer names these, and nobody else. Colour and letter are the same on every page.")),
    rows.length === 0
      ? h("p", {}, "The server names no dataset.")
      : h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Table of datasets" },
        h("table.wide", {}, h("caption.vh", {}, "Registered datasets"),
          h("thead", {}, h("tr", {}, ["Dataset", "Owner", "Licence"].map((t) => h("th", { scope: "col" }, t)), h("th.n", { scope: "col" }, "Records"), h("th", { scope: "col" }, "Reputation"), h("th.n", { scope: "col" }, "Responses caused"), h("th.n", { scope: "col" }, "Earned"))),
          h("tbody", {}, rows.map(line)))),
  ];
}

/** Smallest units by currency, added up exactly over the payees. */
function money(earned = []) {
  const sums = new Map();
  for (const { currency, amount } of earned) sums.set(currency, (sums.get(currency) ?? 0n) + BigInt(amount));
  return [...sums].map(([currency, amount]) => `${count(amount)} ${currency}`).join(", ");
}

/** Sums of parts of responses, in millionths, as responses. */
const responses = (row) => (row.response_ppm === undefined ? null : significant(Number(row.response_ppm) / 1e6));

/** One dataset: terms, reputation, what it earned. */
export async function datasetView(id) {
  const known = (await datasets()).get(id);
  const row = { ...known, ...(await call(`/v1/datasets/${encodeURIComponent(id)}`)) };
  const fact = (label, value) => value !== undefined && value !== null && value !== "" && h("div", {}, h("dt", {}, label), h("dd", {}, value));
  const words = (list) => (Array.isArray(list) ? (list.length ? list.join(", ") : "nothing") : undefined);
  return [
    h("div.place-h", {}, crumb("#/datasets", "All datasets"), heading(chip(known?.index), row.title ?? row.dataset), h("p.lead", {}, [row.owner, licenceName(row.licence)].filter(Boolean).join(" · "))),
    figures(row),
    h("div.two", {},
      h("section", { "aria-labelledby": "terms-h" }, h("h2", { id: "terms-h" }, "What it is, on what terms"),
        h("dl.list", {}, fact("Name", row.dataset), fact("Owner", row.owner), fact("Licence", row.licence), fact("Permits", words(row.permits)), fact("Prohibits", words(row.prohibits)), fact("Language", row.language), row.revoked && fact("Revoked", "its licence was revoked"), row.may_show === false && fact("Texts", "not shown: the licence does not permit search"),
          fact("Records", row.records === undefined ? null : count(row.records)), fact("Content root", row.content_root && h("code", {}, row.content_root)), fact("Id", h("code", {}, row.dataset_id)))),
      h("section", { "aria-labelledby": "worth-h" }, h("h2", { id: "worth-h" }, "Reputation"), reputation(row.reputation), earnings(row.earned))),
  ];
}

function figures(row) {
  const r = row.reputation;
  const earned = money(row.earned);
  const figure = (label, value, small) => value !== null && value !== undefined && value !== "" && h("div", {}, h("dt", {}, label), h("dd", {}, value, small && h("small", {}, small)));
  return h("dl.figures", {},
    r && figure("Place", ordinal(r.rank), r.of ? `of ${r.of} datasets` : "among the registered datasets"),
    r && figure("Reputation score", significant(r.score), "nats a held-out response"),
    figure("Responses caused", responses(row), row.receipts === undefined ? null : `by ${plural(row.receipts, "signed receipt")}`),
    figure("Earned", earned || "0", earned ? "smallest units, settled by receipts" : "no receipt settled revenue yet"),
    figure("Records", row.records === undefined ? null : count(row.records)));
}

function reputation(r) {
  if (!r) return h("p.fine", {}, "Reputation of this dataset was not measured: it is attributed gain on held-out responses of a model with a retrain bank (ascribe reputation).");
  const fact = (label, value, more) => value !== null && value !== undefined && h("div", {}, h("dt", {}, label), h("dd", {}, value, more && h("span.fine", {}, ` (${more})`)));
  return h("div", {},
    h("dl.list", {},
      fact("Attributed gain", estimate(r.influence), between(r.influence)),
      fact("Lost without it", estimate(r.uniqueness), between(r.uniqueness)),
      typeof r.duplication === "number" && fact("Found elsewhere earlier", percent(r.duplication)),
      typeof r.licence_clarity === "number" && fact("Licence clarity", percent(r.licence_clarity, 0), (r.licence_gaps ?? []).join("; ")),
      Object.entries(r.by_capability ?? {}).map(([name, e]) => fact(`Gain, ${name}`, estimate(e), between(e)))),
    h("p.fine", {}, "Measured, in nats a response: what attribution says that this dataset did for held-out responses. No votes."));
}

function earnings(earned) {
  const lines = earned ?? [];
  if (lines.length === 0) return null;
  return h("div", {}, h("h2", {}, "What it earned"),
    h("table", {}, h("caption.vh", {}, "Amounts by account"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Account"), h("th.n", { scope: "col" }, "Amount"))),
      h("tbody", {}, lines.map((e) => h("tr", {}, h("td", {}, h("code", {}, e.account || "no payee named")), h("td.n", {}, `${count(BigInt(e.amount))} ${e.currency}`))))),
    h("p.fine", {}, "In the smallest unit of each currency, by receipts of this server. Payments are made by the ledger."));
}

/** One receipt, its signature checked in this browser. */
export async function receiptView(id) {
  const answer = await call(`/v1/receipts/${encodeURIComponent(id)}`);
  const signed = answer.receipt ?? {};
  const body = signed.receipt ?? {};
  const book = await datasets();
  const total = Number(body.weightTotal ?? 0);
  const check = h("p.check-line", { role: "status" }, "Checking the signature…");
  const fact = (label, value) => value !== undefined && value !== null && h("div", {}, h("dt", {}, label), h("dd", {}, value));
  const share = (one) => {
    const row = book.get(one.dataset);
    const part = Number(one.weight) / total;
    return h("tr", {}, h("th", { scope: "row" }, h("span.set", {}, chip(row?.index), row ? datasetLink(row.dataset_id, row.title ?? row.dataset) : h("code", {}, one.dataset))),
      h("td.axis", {}, bar(row?.index, part, undefined, undefined, 1)), h("td.n", {}, percent(part)), h("td.n", {}, h("code", {}, one.weight)));
  };
  verify(signed).then(
    ([good, words]) => { check.textContent = `${good ? "✓" : "⚠"} ${words}`; check.classList.add(good ? "good" : "bad"); },
    (error) => { check.textContent = `⚠ The signature was not checked: ${error.message}`; check.classList.add("bad"); },
  );
  const code = (text) => text && h("code", {}, text);
  return [
    h("div.place-h", {}, crumb("#/", "Explore"), heading("Receipt"), h("p", {}, h("code", {}, body.requestId ?? id)), check),
    h("div.two", {},
      h("section", { "aria-labelledby": "says-h" }, h("h2", { id: "says-h" }, "What it says"),
        h("dl.list", {}, fact("Settled on", body.settledOn), fact("Method", body.method), fact("Model", code(body.modelSha256)), fact("Training run", code(body.runId)), fact("Settings", code(body.specSha256)),
          fact("Output, salted hash", code(body.outputSaltedSha256)), body.revenue && fact("Revenue", body.revenue.minorUnits === "0" ? "none settled" : `${count(BigInt(body.revenue.minorUnits))} smallest units of ${body.revenue.currency}`), fact("Place in the usage log", answer.index === undefined ? "in the journal; in the log within seconds" : count(answer.index)), fact("Signer", code(signed.signer)), fact("Signature", code(signed.signature)))),
      h("section", { "aria-labelledby": "due-h" }, h("h2", { id: "due-h" }, "Who is due what part"),
        (body.shares ?? []).length === 0
          ? h("p.fine", {}, "Nobody: every part of this response stays unattributed.")
          : h("table.shares", {}, h("caption.vh", {}, "Integer weights of the datasets"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Dataset"), h("th", { scope: "col" }, spoken("bar")), h("th.n", { scope: "col" }, "Part"), h("th.n", { scope: "col" }, "Weight"))), h("tbody", {}, body.shares.map(share))),
        body.weightTotal && h("p.fine", {}, `Weights stand against ${body.weightTotal}; what is left is unattributed.`))),
    h("details", {}, h("summary", {}, "The receipt as JSON"), h("pre", { tabindex: "0", "aria-label": "Receipt as JSON" }, JSON.stringify(answer, null, 2))),
  ];
}

/** RFC 8785: sorted names, no spaces. Numbers of receipts are decimal text, so a script's own spelling is the canonical one. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value && typeof value === "object") return `{${Object.keys(value).sort().map((k) => `${JSON.stringify(k)}:${canonical(value[k])}`).join(",")}}`;
  return JSON.stringify(value);
}

const ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/** The 32 bytes of a `did:key` of Ed25519. */
export function keyOfDid(did) {
  const digits = /^did:key:z([1-9A-HJ-NP-Za-km-z]{40,60})$/.exec(did)?.[1];
  if (!digits) throw new Error("its signer is no did:key");
  let number = 0n;
  for (const digit of digits) number = number * 58n + BigInt(ALPHABET.indexOf(digit));
  const bytes = number.toString(16).padStart(68, "0").match(/../g).map((pair) => parseInt(pair, 16));
  if (bytes.length !== 34 || bytes[0] !== 0xed || bytes[1] !== 0x01) throw new Error("its signer's key is not Ed25519");
  return new Uint8Array(bytes.slice(2));
}

/** Whether the signature holds and the signer is this server: `[good, words]`. */
async function verify(signed) {
  if (!signed.signature || !signed.signer) throw new Error("it has none");
  if (!crypto.subtle) throw new Error("this browser does so on secure pages only (https or this machine)");
  const key = await crypto.subtle.importKey("raw", keyOfDid(signed.signer), { name: "Ed25519" }, false, ["verify"]);
  const signature = Uint8Array.from(atob(signed.signature), (c) => c.charCodeAt(0));
  const holds = await crypto.subtle.verify({ name: "Ed25519" }, key, signature, new TextEncoder().encode(canonical(signed.receipt)));
  if (!holds) return [false, "The signature does not belong to this receipt: it was changed after it was signed."];
  const { keys = [] } = await call("/v1/keys").catch(() => ({}));
  return keys.some((one) => one.id === signed.signer)
    ? [true, "The signature holds: this server's key signed exactly these words. Checked in this browser."]
    : [false, "The signature holds, but by a key that this server does not name as its own."];
}

export const missing = (error) => [
  h("div.place-h", {}, crumb("#/", "Explore"), heading(error.status === 404 ? "Not here" : "That did not work"), h("p.lead", {}, error.message), error.requestId && h("p.fine", {}, "Request ", h("code", {}, error.requestId))),
];
