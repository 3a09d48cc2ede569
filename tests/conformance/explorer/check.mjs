// Clicks through the explorer page of a running server. `node check.mjs http://127.0.0.1:PORT REPUTATION.json`.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const base = process.argv[2].replace(/\/$/, "");
const reputations = JSON.parse(readFileSync(process.argv[3])).datasets;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });

let passed = 0;
let failed = 0;
const strangers = new Set();
const noise = [];
/** Statuses that a check provokes on purpose; the browser notes them on its console. */
const provoked = /status of (400|401|404|413|422|503)/;

function check(what, holds, found) {
  if (holds) passed += 1;
  else {
    failed += 1;
    console.log(`FAILED ${what}${found === undefined ? "" : `: ${JSON.stringify(found)?.slice(0, 400)}`}`);
  }
}

/** One scenario in a fresh tab; what it throws is one failure. */
async function scenario(name, options, walk) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("request", (request) => { if (!request.url().startsWith(`${base}/`) && !request.url().startsWith("data:")) strangers.add(request.url()); });
  page.on("console", (message) => { if (["error", "warning"].includes(message.type()) && !provoked.test(message.text())) noise.push(`${name}: ${message.text()}`); });
  page.on("pageerror", (error) => noise.push(`${name}: ${error.message}`));
  page.on("dialog", (dialog) => { noise.push(`${name}: a dialog of the browser`); dialog.dismiss(); });
  try {
    await walk(page);
  } catch (error) {
    check(name, false, String(error.message).split("\n")[0]);
  }
  await context.close();
}

const api = async (path, body) => {
  const response = await fetch(base + path, body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return response.json();
};

const examples = (await api("/v1/examples")).examples;
const registered = (await api("/v1/datasets")).datasets;
const titleOf = new Map(registered.map((row) => [row.dataset_id, row.title]));
const english = examples.find((e) => e.language === "en");
const chinese = examples.find((e) => e.language === "zh");
check("there are examples in English and Chinese", english && chinese);

/** Digits of a text alone. */
const digits = (text) => text.replace(/\D/g, "");
/** Smallest units over the payees. */
const sumOf = (rows) => rows.reduce((sum, row) => sum + BigInt(row.amount), 0n);
/** What a dataset's page says under a label of its figures, without the small print. */
const figure = (page, label) => page.$eval("dl.figures", (list, wanted) => [...list.querySelectorAll("div")].find((one) => one.querySelector("dt").textContent === wanted)?.querySelector("dd").firstChild.textContent ?? "", label);
const ordinal = (n) => `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][n % 10] ?? "th"}`;
/** Three digits that count. */
const near = (text, value) => Math.abs(Number(text.replace("−", "-")) - value) <= 0.006 * Math.abs(value) + 1e-4;

const answered = (page) => page.waitForFunction(() => document.querySelector("#answer-h") && !document.querySelector("#go").hasAttribute("aria-busy"));
const open = async (page, fragment = "") => {
  await page.goto(`${base}/${fragment}`);
  await page.waitForFunction(() => document.querySelector("#state").textContent !== "");
};
const trace = async (page, prompt, completion) => {
  await page.fill("#prompt", prompt);
  await page.fill("#completion", completion);
  await page.evaluate(() => document.querySelector("#result").replaceChildren());
  await page.click("#go");
  await answered(page);
};
/** The response as it stands on the page, without prompt, spoken words and numbers of runs. */
const told = (page) => page.$$eval("#told .t", (parts) => parts.map((part) => part.textContent).join(""));

await scenario("pick a response", {}, async (page) => {
  await open(page);
  check("the page says what it is", (await page.textContent("h1")).includes("Where did these words come"));
  check("the server's state is shown", !(await page.getAttribute("#state", "class")).includes("off"), await page.textContent("#state"));
  const labels = await page.$$eval("#example option", (options) => options.length);
  check("every response of the server can be picked", labels === examples.length + 1, labels);
  await page.selectOption("#example", String(english.id));
  await answered(page);
  check("its address is a bookmark", page.url() === `${base}/#/e/${english.id}`, page.url());
  check("prompt and response stand on the sheet", (await page.inputValue("#prompt")) === english.prompt.replaceAll("\r\n", "\n") && (await page.inputValue("#completion")) === english.completion);
  check("the told text is the response", (await told(page)) === english.completion, await told(page));
  const sent = { example: english.id, k: 8, tokens: true, verbatim: true, receipt: false };
  const method = await page.$eval("#ask", (form) => form.elements.namedItem("method")?.value ?? null);
  if (method) sent.method = method;
  const answer = await api("/v1/attributions", sent);
  const shares = [...answer.shares].sort((a, b) => b.share - a.share);
  const shown = await page.$$eval("table.shares tbody tr", (rows) => rows.map((row) => [row.querySelector("th a")?.textContent, row.querySelector(".n b").textContent]));
  check("every dataset has a row, largest first", shown.length === Math.min(shares.length, 13), shown);
  check("shares are those of the contract", shares.slice(0, 12).every((s, i) => shown[i][0] === titleOf.get(s.dataset_id) && Math.abs(parseFloat(shown[i][1]) - 100 * s.share) < 0.051), shown);
  const intervals = await page.$$eval("table.shares tbody .n small", (cells) => cells.map((c) => c.textContent.match(/[\d.]+/g).map(Number)));
  check("intervals are those of the contract", shares.slice(0, 12).every((s, i) => Math.abs(intervals[i][0] - 100 * s.low) < 0.051 && Math.abs(intervals[i][1] - 100 * s.high) < 0.051), intervals);
  const owners = await page.$$eval("table.shares tbody small", (cells) => cells.map((c) => c.textContent).join(" "));
  check("owners and licences stand beside", shares.slice(0, 12).every((s) => owners.includes(s.owner)), owners);
  const whiskers = await page.$$eval("table.shares .whisker", (list) => list.filter((w) => w.getBoundingClientRect().width >= 3).length);
  check("every share has its whisker", whiskers === Math.min(12, shares.length), whiskers);
  const facts = await page.textContent(".facts");
  check("coverage, method and verdict are named", facts.includes("Coverage") && facts.includes(answer.method) && /Payable|Too noisy|Not payable/.test(facts), facts);
  check("a noisy answer says so, a payable one does not", /nois/i.test(JSON.stringify(answer.verdict)) === facts.includes("Too noisy to pay"), [answer.verdict, facts]);
  const cards = await page.$$eval(".card > .fine code", (codes) => codes.map((c) => c.textContent));
  check("records are those of the contract, in its order", JSON.stringify(cards) === JSON.stringify(answer.hits.map((hit) => hit.record_id)), cards);
  for (const [place, hit] of answer.hits.entries()) {
    const card = page.locator(".card").nth(place);
    if (typeof hit.text !== "string") continue; // "withheld" below
    check(`record ${place + 1} is shown as it is`, (await card.locator("blockquote").first().textContent()) === hit.text);
    const letters = [...hit.text];
    const own = hit.spans.filter((s) => s.record_id === hit.record_id).sort((a, b) => a.start - b.start);
    const wanted = own.map((s) => letters.slice(s.start, s.end).join(""));
    const marks = await card.locator("blockquote").first().locator("mark").allTextContents();
    check(`spans of record ${place + 1} are highlighted`, marks.join("") === wanted.join(""), [marks, wanted]);
  }
  check("the answer's heading has the focus", await page.evaluate(() => document.activeElement?.id === "answer-h"));
  check("ears are told", (await page.textContent("#status")).startsWith("Traced."), await page.textContent("#status"));
});

await scenario("withheld", {}, async (page) => {
  // As the server answers where a licence does not permit showing: ids and offsets, no words.
  let kept;
  await page.route("**/v1/attributions", async (route) => {
    const original = await route.fetch();
    const answer = await original.json();
    kept = structuredClone(answer.hits);
    delete answer.hits[0].text;
    for (const span of answer.hits[0].spans) delete span.text;
    await route.fulfill({ response: original, body: JSON.stringify(answer) });
  });
  await open(page, `#/e/${english.id}`);
  await answered(page);
  check("there was a text to withhold", kept?.length > 1 && kept[0].text.length > 20, kept?.length);
  const [first, second] = [page.locator(".card").nth(0), page.locator(".card").nth(1)];
  check("a withheld text is not shown, nowhere in its card", (await first.locator("blockquote").count()) === 0 && !(await first.textContent()).includes(kept[0].text.slice(0, 20)), await first.textContent());
  check("the page says that it is withheld", (await first.locator("p.withheld").textContent()).includes("not shown: the licence does not permit it"));
  check("its id, owner and score stand there all the same", (await first.locator("p.fine code").textContent()) === kept[0].record_id && (await first.textContent()).includes(kept[0].owner) && (await first.locator(".score").count()) === 1, await first.textContent());
  check("the next record is shown", (await second.locator("blockquote").first().textContent()) === kept[1].text);
});

await scenario("tokens", {}, async (page) => {
  await open(page, `#/e/${english.id}`);
  await answered(page);
  const strongest = page.locator("#told .p5").first();
  check("the strongest token is marked as such", (await page.locator("#told .p5, #told .n5").count()) >= 1);
  const drawn = await strongest.evaluate((one) => [getComputedStyle(one).backgroundColor, parseFloat(getComputedStyle(one).borderBottomWidth)]);
  check("it has a colour and a line, so that colour is not alone", drawn[0] !== "rgba(0, 0, 0, 0)" && drawn[1] >= 3, drawn);
  await strongest.hover();
  const words = await page.textContent(".readout");
  check("pointing at a token tells its influence", /influence, \d+(st|nd|rd|th) of \d+/.test(words), words);
  await page.focus("#told");
  await page.keyboard.press("Home");
  const first = await page.textContent("#told .now");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  const third = await page.$eval("#told .now", (one) => one.dataset.run);
  check("arrow keys walk", third === "2", [first, third]);
  await page.keyboard.press("End");
  check("End goes to the last", await page.$eval("#told", (one) => one.querySelector(".now").dataset.run === [...one.querySelectorAll("[data-run]")].at(-1).dataset.run));
  await page.click("summary:has-text('Tokens by influence')");
  const places = await page.$$eval("details table tbody tr td:first-child", (cells) => cells.map((c) => Number(c.textContent)));
  check("the table of tokens is in order", places.length > 0 && places.every((p, i) => p === i + 1), places);
});

await scenario("verbatim", {}, async (page) => {
  // A response that repeats a record word for word, so that there must be a run.
  const seed = await api("/v1/attributions", { prompt: english.prompt, completion: english.completion, k: 8 });
  const record = seed.hits.find((hit) => typeof hit.text === "string" && hit.text.length > 200);
  const quote = record.text.slice(0, 180);
  await open(page);
  await trace(page, "It is said: ", `${quote} and then something else entirely`);
  check("the told text is the response", (await told(page)) === `${quote} and then something else entirely`);
  const runs = await page.$$eval("#told .verb", (boxes) => boxes.map((b) => [...b.querySelectorAll(".t")].map((t) => t.textContent).join("")));
  check("a run that stands in a record has a box", runs.some((run) => record.text.includes(run.trim()) && run.trim().length > 30), runs);
  check("a box is no highlight", await page.$eval("#told .verb", (b) => getComputedStyle(b).outlineStyle === "solid" && getComputedStyle(b).backgroundColor === "rgba(0, 0, 0, 0)"));
  const sources = await page.$$eval(".found li", (items) => items.map((i) => i.textContent));
  check("its sources are named", sources.length === runs.length && sources[0].includes("stands in"), sources);
  await page.click("#told .verb sup a");
  check("its number leads to its sources", await page.evaluate(() => document.activeElement?.id.startsWith("verbatim-")));
  await page.check("input[name=layer][value=verbatim]", { force: true });
  check("influence can be hidden", await page.$$eval("#told .t", (all) => all.every((t) => getComputedStyle(t).backgroundColor === "rgba(0, 0, 0, 0)")));
  check("and leaves the boxes", await page.$eval("#told .verb", (b) => getComputedStyle(b).outlineStyle === "solid"));
  await page.check("input[name=layer][value=influence]", { force: true });
  check("verbatim can be hidden", await page.$eval("#told .verb", (b) => getComputedStyle(b).outlineWidth === "0px" || getComputedStyle(b).outlineStyle === "none"));
});

await scenario("Chinese", {}, async (page) => {
  await open(page, `#/e/${chinese.id}`);
  await answered(page);
  check("not a letter is lost or split", (await told(page)) === chinese.completion, await told(page));
  check("it is said to be Chinese", (await page.getAttribute("#told", "lang")) === "zh");
  const lone = await page.$$eval("#told .t", (parts) => parts.some((part) => /[\ud800-\udbff]$|^[\udc00-\udfff]|\ufffd/.test(part.textContent)));
  check("no token is half a letter", !lone);
  const astral = `${chinese.completion.slice(0, 20)} 𠀀𠮷 🀄️ naïve café ${chinese.completion.slice(20, 60)}`;
  await trace(page, "𠮷：", astral);
  check("letters beyond 16 bits stay whole", (await told(page)) === astral, await told(page));
});

await scenario("methods and length of the list", {}, async (page) => {
  await open(page, `#/e/${english.id}`);
  await answered(page);
  const names = await page.$$eval("input[name=method]", (all) => all.map((one) => one.value));
  check("there is a choice of methods", names.length >= 2, names);
  for (const name of names.slice(1)) {
    await page.evaluate(() => document.querySelector("#result").replaceChildren());
    await page.check(`input[name=method][value="${name}"]`, { force: true });
    await answered(page);
    const facts = await page.textContent(".facts");
    const answer = await api("/v1/attributions", { example: english.id, k: 8, method: name });
    check(`switching to ${name} asks again and names it`, facts.includes(answer.method), facts);
    check(`the told text is the response under ${name}`, (await page.textContent("#told")).includes(english.completion.slice(0, 20)));
  }
  await page.selectOption("#k", "4");
  await page.evaluate(() => document.querySelector("#result").replaceChildren());
  await page.click("#go");
  await answered(page);
  check("the list is as long as asked", (await page.locator(".card").count()) <= 4);
});

await scenario("receipts", {}, async (page) => {
  await open(page, `#/e/${english.id}`);
  await answered(page);
  check("without a receipt the page says so", (await page.textContent(".slip")).includes("No receipt"));
  await page.check("#receipt");
  await page.evaluate(() => document.querySelector("#result").replaceChildren());
  await page.click("#go");
  await answered(page);
  const href = await page.getAttribute(".slip a", "href");
  await page.click(".slip a");
  await page.waitForSelector(".check-line.good, .check-line.bad");
  check("the signature holds in the browser", (await page.textContent(".check-line")).includes("The signature holds: this server's key"), await page.textContent(".check-line"));
  check("the receipt's page says what it is", (await page.textContent("h1:visible")) === "Receipt");
  const weights = await page.$$eval("table.shares td:last-child code", (cells) => cells.map((c) => c.textContent));
  check("weights are whole numbers", weights.every((w) => /^\d+$/.test(w)), weights);
  await page.goBack();
  check("back leads to the answer", await page.isVisible("#answer-h"));
  await page.route("**/v1/receipts/*", async (route) => {
    const original = await route.fetch();
    const text = await original.text();
    await route.fulfill({ response: original, body: text.replace(/("settledOn": ?")\d{4}/, "$11999") });
  });
  await page.goto(`${base}/`);
  await page.goto(`${base}/${href}`);
  await page.waitForSelector(".check-line.good, .check-line.bad");
  check("a changed receipt is caught", (await page.textContent(".check-line")).includes("changed after it was signed"), await page.textContent(".check-line"));
  await page.goto(`${base}/#/receipts/nothing-of-the-kind`);
  await page.waitForFunction(() => document.querySelector("#place h1")?.textContent === "Not here");
  check("a receipt that is not there says so", true);
});

await scenario("datasets", {}, async (page) => {
  await open(page, `#/e/${english.id}`);
  await answered(page);
  const link = page.locator("table.shares th a").first();
  const title = await link.textContent();
  await link.click();
  await page.waitForFunction((t) => document.querySelector("#place h1")?.textContent.includes(t), title);
  const words = await page.textContent("#place");
  const row = registered.find((one) => one.title === title);
  check("a share leads to its dataset", words.includes(row.owner) && words.includes(row.licence.replaceAll("LicenseRef-", "")), words);
  check("it says what the dataset earned and what it is worth", words.includes("Earned") && words.includes("Reputation"), words);
  const known = reputations.find((one) => one.dataset === row.dataset);
  check("its reputation is the measured one", (await figure(page, "Place")) === ordinal(known.rank), [known.rank, await figure(page, "Place")]);
  check("so is its score", near(await figure(page, "Reputation score"), known.score), [known.score, await figure(page, "Reputation score")]);
  check("the new place has the focus", await page.evaluate(() => document.activeElement?.tagName === "H1"));
  await page.goBack();
  check("back keeps the answer", await page.isVisible("#answer-h"));
  await page.click("nav a:has-text('Datasets')");
  await page.waitForSelector("table.wide");
  check("all datasets are listed", (await page.locator("table.wide tbody tr").count()) === registered.length);
  check("the menu says where one is", (await page.getAttribute("[data-nav=datasets]", "aria-current")) === "page");
});

await scenario("earnings", {}, async (page) => {
  const earned = async (id) => (await api(`/v1/datasets/${encodeURIComponent(id)}`)).earned;
  const before = new Map();
  for (const row of registered) before.set(row.dataset_id, sumOf(await earned(row.dataset_id)));
  // The first response that is payable; one that is not leaves its revenue unattributed.
  const minor = 123_456_789_012n;
  let sold;
  for (const example of examples) {
    const answer = await api("/v1/attributions", { example: example.id, k: 0, receipt: true, revenue: { currency: "USD", minor_units: String(minor) } });
    if (answer.verdict === "payable") {
      sold = answer.receipt.receipt;
      break;
    }
  }
  check("a response is payable", sold?.shares.length > 1, sold);
  const largest = [...sold.shares].sort((a, b) => (BigInt(b.weight) > BigInt(a.weight) ? 1 : -1))[0];
  // What the receipt makes due, by hand; each of its payees may have lost less than a unit to rounding.
  for (const { dataset_id: id } of registered) {
    const weight = BigInt(sold.shares.find((share) => share.dataset === id)?.weight ?? 0);
    const due = (minor * weight) / BigInt(sold.weightTotal);
    const rows = await earned(id);
    const lost = due - (sumOf(rows) - before.get(id));
    check(`${id} earned its weight's part of the revenue`, lost >= 0n && lost < BigInt(Math.max(1, rows.length)), [String(due), rows]);
  }
  await page.goto(`${base}/#/datasets/${encodeURIComponent(largest.dataset)}`);
  await page.waitForSelector("dl.figures");
  const total = sumOf(await earned(largest.dataset));
  check("the page has that sum, to the last unit", total > 0n && digits(await figure(page, "Earned")) === String(total) && (await figure(page, "Earned")).includes("USD"), [String(total), await figure(page, "Earned")]);
  const accounts = await page.$$eval("section[aria-labelledby=worth-h] table tbody td.n", (cells) => cells.map((cell) => cell.textContent));
  check("by account, too", accounts.length > 0 && accounts.reduce((sum, text) => sum + BigInt(digits(text)), 0n) === total, accounts);
  await page.goto(`${base}/#/receipts/${encodeURIComponent(sold.requestId)}`);
  await page.waitForSelector(".check-line.good");
  const weights = await page.$$eval("table.shares td:last-child code", (cells) => cells.map((cell) => cell.textContent));
  check("the receipt's page has its weights", JSON.stringify(weights) === JSON.stringify(sold.shares.map((share) => share.weight)), weights);
  const facts = await page.textContent("dl.list");
  check("and its revenue", digits(facts.split("Revenue")[1].split("smallest")[0]) === String(minor) && facts.includes("smallest units of USD"), facts);
});

await scenario("refusals", {}, async (page) => {
  await open(page);
  await page.evaluate(() => document.querySelector("#completion").removeAttribute("required"));
  await page.click("#go");
  check("an empty response is refused in words", await page.isVisible("#ask-error"));
  check("the field has the focus", await page.evaluate(() => document.activeElement?.id === "completion"));
  let tries = 0;
  await page.route("**/v1/attributions", async (route) => {
    tries += 1;
    if (tries === 1) await route.fulfill({ status: 503, headers: { "retry-after": "2", "content-type": "application/problem+json", "x-request-id": "r-1" }, body: JSON.stringify({ title: "Busy", detail: "The queue is full." }) });
    else if (tries === 2) await route.fulfill({ status: 401, headers: { "content-type": "application/problem+json" }, body: JSON.stringify({ title: "Unauthorized" }) });
    else await route.continue();
  });
  await page.fill("#completion", english.completion);
  await page.click("#go");
  await page.waitForSelector("#ask-error:visible");
  const words = await page.textContent("#ask-error");
  check("overload says when to come back", words.includes("The queue is full.") && words.includes("in 2 s") && words.includes("r-1"), words);
  await page.click("#go");
  await page.waitForSelector("#key-dialog[open]");
  await page.fill("#key", "a-secret");
  const again = page.waitForRequest((request) => request.url().endsWith("/v1/attributions") && request.headers().authorization === "Bearer a-secret");
  await page.click("#key-form [type=submit]");
  check("a key that is asked for is sent", Boolean(await again));
  check("it is kept for the tab alone", await page.evaluate(() => localStorage.length === 0 && document.cookie === ""));
});

await scenario("a refusal of the server itself", {}, async (page) => {
  await open(page);
  await page.fill("#prompt", "x".repeat(20_000));
  await page.fill("#completion", "y");
  await page.click("#go");
  await page.waitForSelector("#ask-error:visible");
  check("what the server refuses is shown in its words", (await page.textContent("#ask-error")).length > 10, await page.textContent("#ask-error"));
});

await scenario("hostile text", {}, async (page) => {
  await open(page);
  const hostile = `<img src=x onerror="window.hit=1"><script>window.hit=1</script> </textarea> \u202e &amp; ${english.completion.slice(0, 60)}`;
  await trace(page, "<b>prompt</b>", hostile);
  check("markup in a response is text", (await told(page)) === hostile && (await page.evaluate(() => window.hit === undefined && !document.querySelector("#result img, #result script"))), await told(page));
});

await scenario("keys alone", {}, async (page) => {
  await open(page);
  await page.keyboard.press("Tab");
  check("the first stop skips to the content", (await page.evaluate(() => document.activeElement?.className)) === "skip");
  await page.keyboard.press("Enter");
  await page.focus("#completion");
  await page.keyboard.insertText(english.completion);
  await page.keyboard.press("Control+Enter");
  await answered(page);
  check("Control and Enter trace", true);
  const reached = new Set();
  for (let i = 0; i < 90; i += 1) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement?.closest(".slip, .card, table.shares, .switch, #told, footer")?.className || document.activeElement?.id || ""));
  }
  check("shares, tokens and records are reached", [...reached].some((r) => r.includes("told")) && [...reached].some((r) => r.includes("shares")) && [...reached].some((r) => r.includes("card")), [...reached]);
});

const views = { start: "", answer: `#/e/${english.id}`, datasets: "#/datasets", dataset: `#/datasets/${registered[0].dataset_id}` };
for (const scheme of ["light", "dark"]) {
  for (const width of [1280, 360]) {
    await scenario(`looks, ${scheme}, ${width} px`, { colorScheme: scheme, viewport: { width, height: 800 } }, async (page) => {
      for (const [name, fragment] of Object.entries(views)) {
        await open(page);
        await page.goto(`${base}/${fragment}`);
        if (name === "answer") await answered(page);
        else if (fragment) await page.waitForSelector("#place h1");
        if (name === "answer") await page.evaluate(() => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
        const wide = await page.evaluate(() => document.documentElement.scrollWidth);
        check(`${name}, ${scheme}, ${width} px: nothing sticks out`, wide <= width, wide);
        // Evaluated by the driver, so the page's policy stands as it is.
        await page.evaluate(axe);
        const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
        const bad = found.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 140)} ${v.nodes[0].failureSummary?.slice(0, 200)}`);
        check(`${name}, ${scheme}, ${width} px: axe finds nothing serious`, bad.length === 0, bad);
      }
    });
  }
}

await scenario("without a script", { javaScriptEnabled: false }, async (page) => {
  await page.goto(base);
  check("it says that it needs one", (await page.textContent("body")).includes("needs JavaScript"));
});

// --- the wire
const page = await fetch(`${base}/`);
const policy = page.headers.get("content-security-policy") ?? "";
check("the policy allows nothing but this server's files", policy.includes("default-src 'none'") && policy.includes("frame-ancestors 'none'") && !policy.includes("unsafe"), policy);
const tag = page.headers.get("etag");
check("a known file is not sent again", tag && (await fetch(`${base}/`, { headers: { "if-none-match": tag } })).status === 304);
check("nothing is asked of anybody else", strangers.size === 0, [...strangers]);
check("the console stays silent", noise.length === 0, noise);

await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
