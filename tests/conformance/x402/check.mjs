// check.mjs PAYWALL LOOK [PYTHON CHECK_PY]: the published x402 clients against our paywall on a real chain.
// Prints one line per failure and `N passed, M failed`.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ExactEvmScheme } from "@x402/evm";
import { decodePaymentResponseHeader, wrapFetchWithPaymentFromConfig } from "@x402/fetch";
import solc from "solc";
import { createPublicClient, createWalletClient, http } from "viem";
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";

const [paywall, look, python, checkPy] = process.argv.slice(2);
let passed = 0;
let failed = 0;
const note = (name, ok, why = "not so") => {
  if (ok) passed += 1;
  else {
    failed += 1;
    console.log(`FAILED ${name}: ${why}`);
  }
};
const check = async (name, test) => {
  try {
    const found = await test();
    note(name, found === true, JSON.stringify(found));
  } catch (error) {
    note(name, false, error.stack ?? error.message);
  }
};

const children = [];
const firstLine = (child, pattern, what) =>
  new Promise((resolve, reject) => {
    let text = "";
    child.stdout.on("data", (data) => {
      text += data;
      const found = pattern.exec(text);
      if (found) resolve(found[1]);
    });
    child.on("exit", (code) => reject(new Error(`${what} ended with ${code}`)));
    setTimeout(() => reject(new Error(`${what} did not start in 60 s`)), 60_000).unref();
  });

async function startChain() {
  const anvil = spawn("node_modules/.bin/anvil", ["--port", "0", "--host", "127.0.0.1"], { detached: true });
  children.push(() => {
    try {
      process.kill(-anvil.pid);
    } catch {
      // It has ended by itself.
    }
  });
  return `http://127.0.0.1:${await firstLine(anvil, /Listening on 127\.0\.0\.1:(\d+)/, "anvil")}`;
}

function compileToken() {
  const content = readFileSync("Token.sol", "utf8");
  const settings = { optimizer: { enabled: true }, outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } } };
  const output = JSON.parse(solc.compile(JSON.stringify({ language: "Solidity", sources: { "Token.sol": { content } }, settings })));
  const errors = (output.errors ?? []).filter(({ severity }) => severity === "error");
  if (errors.length > 0) throw new Error(errors[0].formattedMessage);
  const { abi, evm } = output.contracts["Token.sol"].Token;
  return { abi, bytecode: `0x${evm.bytecode.object}` };
}

async function startShop(config) {
  const path = join(work, "paywall.json");
  writeFileSync(path, JSON.stringify(config));
  const child = spawn(paywall, [path], { stdio: ["pipe", "pipe", "inherit"] });
  const stop = () => new Promise((resolve) => {
    child.removeAllListeners("exit");
    child.on("exit", resolve);
    child.kill("SIGKILL");
  });
  children.push(() => child.kill("SIGKILL"));
  const address = await firstLine(child, /"listening":"([^"]+)"/, "the paywall");
  return { url: `http://${address}`, stop };
}

const work = mkdtempSync(join(tmpdir(), "x402-"));
const rpc = await startChain();
const chain = { id: 31337, name: "local", nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 }, rpcUrls: { default: { http: [rpc] } } };
const reader = createPublicClient({ chain, transport: http(rpc), pollingInterval: 50 });
const ask = (method, params) => reader.request({ method, params });
// Everybody is new; the local chain gives the relayer its gas.
const payerKey = generatePrivateKey();
const payer = privateKeyToAccount(payerKey);
const payTo = privateKeyToAccount(generatePrivateKey()).address;
const relayerKey = generatePrivateKey();
const relayer = privateKeyToAccount(relayerKey);
const wallet = createWalletClient({ account: relayer, chain, transport: http(rpc) });

async function main() {
  await ask("anvil_setBalance", [relayer.address, "0x56bc75e2d63100000"]);
  const { abi, bytecode } = compileToken();
  const deployed = await wallet.deployContract({ abi, bytecode, args: [payer.address, 10_000_000n] });
  const { contractAddress: token } = await reader.waitForTransactionReceipt({ hash: deployed });
  const balance = (holder) => reader.readContract({ address: token, abi, functionName: "balanceOf", args: [holder] });
  const keyFile = join(work, "relayer.key");
  writeFileSync(keyFile, relayerKey, { mode: 0o600 });
  const book = `sqlite:${join(work, "book.db")}`;
  const account = (digit) => `eip155:31337:0x${digit.repeat(40)}`;
  const config = {
    book, rpc, chain_id: 31337, token, token_name: "Test Dollar", token_version: "1", pay_to: payTo,
    relayer_key_file: keyFile, price_minor: 2500, settle_wait_ms: 20_000,
    answers: {
      hamlet: { text: "To be", weights: [{ dataset: "urn:uuid:plays", weight: 3 }, { dataset: "urn:uuid:poems", weight: 1 }] },
      code: { text: "fn main", weights: [{ dataset: "urn:uuid:code", weight: 7 }] },
    },
    terms: [
      { dataset: "urn:uuid:plays", owner: "Will", account: account("1") },
      { dataset: "urn:uuid:poems", owner: "Emily", account: account("2") },
      { dataset: "urn:uuid:code", owner: "Ada", account: account("3") },
    ],
  };
  let shop = await startShop(config);
  const url = () => `${shop.url}/v1/paid/attributions`;
  const ask402 = (body, headers = {}) =>
    fetch(url(), { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json", ...headers } });

  // A fetch that remembers what it sent: the payment header is needed for replays.
  let sent;
  const spying = (input, init) => {
    const request = new Request(input, init);
    sent = request.headers.get("PAYMENT-SIGNATURE") ?? sent;
    return fetch(request);
  };
  const paying = wrapFetchWithPaymentFromConfig(spying, {
    schemes: [{ network: "eip155:*", client: new ExactEvmScheme(payer) }],
    // The token is ours, so its payer says that it may be spent.
    spendControls: { allowedAssets: true },
  });
  const buy = (prompt) => paying(url(), { method: "POST", body: JSON.stringify({ prompt }), headers: { "content-type": "application/json" } });

  await check("without a payment: 402 with a quote in both versions", async () => {
    const answer = await ask402({ prompt: "hamlet" });
    const quote = JSON.parse(Buffer.from(answer.headers.get("payment-required"), "base64"));
    const body = await answer.json();
    const [one] = quote.accepts;
    return answer.status === 402 && quote.x402Version === 2 && one.scheme === "exact" && one.network === "eip155:31337" &&
      one.amount === "2500" && one.asset.toLowerCase() === token && one.payTo === payTo && body.x402Version === 1 &&
      body.accepts[0].maxAmountRequired === "2500";
  });

  let first;
  await check("@x402/fetch pays and gets the answer", async () => {
    const answer = await buy("hamlet");
    const said = decodePaymentResponseHeader(answer.headers.get("payment-response"));
    first = { header: sent, transaction: said.transaction };
    return answer.status === 200 && (await answer.json()).text === "To be" && said.success === true && said.network === "eip155:31337" &&
      said.payer.toLowerCase() === payer.address.toLowerCase();
  });
  await check("the money has moved, and its transaction is on the chain", async () => {
    const receipt = await reader.getTransactionReceipt({ hash: first.transaction });
    return (await balance(payTo)) === 2500n && receipt.status === "success";
  });
  const balances = (owner) => {
    const run = spawnSync(look, ["statement", book, owner], { encoding: "utf8" });
    if (run.status !== 0) return { error: run.stderr };
    return JSON.parse(run.stdout);
  };
  // 2500 of the token's millionths, in sub-units: 2500 * 10^6; a tenth is the operator's, a tenth of the rest is not covered.
  const earned = (owner) => Object.values(balances(owner).available ?? {}).join();
  await check("the contributors of that very response are credited", async () =>
    earned("Will") === "0.001518750000 USDC" && earned("Emily") === "0.000506250000 USDC" && earned("Ada") === "0.000000000000 USDC");

  for (const [name, body] of [["the same request", { prompt: "hamlet" }], ["another request", { prompt: "code" }]]) {
    await check(`a replayed authorisation is refused for ${name}`, async () => {
      const answer = await ask402(body, { "PAYMENT-SIGNATURE": first.header });
      const quote = JSON.parse(Buffer.from(answer.headers.get("payment-required"), "base64"));
      return answer.status === 402 && quote.error === "invalid_exact_evm_nonce_already_used" && (await balance(payTo)) === 2500n;
    });
  }

  // Payments that do not fit: the client signs them honestly, and each differs in one field.
  const sign = async (change = {}, domain = {}) => {
    const authorization = {
      from: payer.address, to: payTo, value: "2500", validAfter: "0",
      validBefore: String(Math.floor(Date.now() / 1000) + 60), nonce: generatePrivateKey(), ...change,
    };
    const types = {
      TransferWithAuthorization: [
        { name: "from", type: "address" }, { name: "to", type: "address" }, { name: "value", type: "uint256" },
        { name: "validAfter", type: "uint256" }, { name: "validBefore", type: "uint256" }, { name: "nonce", type: "bytes32" },
      ],
    };
    const signature = await payer.signTypedData({
      domain: { name: "Test Dollar", version: "1", chainId: 31337, verifyingContract: token, ...domain },
      types, primaryType: "TransferWithAuthorization", message: authorization,
    });
    return { authorization, signature };
  };
  const v1 = (payload) => ({
    "X-PAYMENT": Buffer.from(JSON.stringify({ x402Version: 1, scheme: "exact", network: "eip155:31337", payload })).toString("base64"),
  });
  const now = Math.floor(Date.now() / 1000);
  for (const [name, payload, error] of [
    ["too little", await sign({ value: "2499" }), "authorization_value_mismatch"],
    ["to somebody else", await sign({ to: relayer.address }), "recipient_mismatch"],
    ["expired", await sign({ validBefore: String(now - 1) }), "valid_before"],
    ["not yet valid", await sign({ validAfter: String(now + 600), validBefore: String(now + 700) }), "valid_after"],
    ["signed for another chain", await sign({}, { chainId: 1 }), "signature"],
    ["signed for another token", await sign({}, { verifyingContract: payTo }), "signature"],
    ["in another's name", await (async () => { const p = await sign(); return { ...p, authorization: { ...p.authorization, from: relayer.address } }; })(), "signature"],
  ]) {
    await check(`a payment ${name} is refused`, async () => {
      const answer = await ask402({ prompt: "code" }, v1(payload));
      const body = await answer.json();
      return (answer.status === 402 && body.error.includes(error)) || `${answer.status} ${body.error}`;
    });
  }
  await check("a poor payer is refused", async () => {
    const poor = privateKeyToAccount(generatePrivateKey());
    const answer = await wrapFetchWithPaymentFromConfig(fetch, { schemes: [{ network: "eip155:*", client: new ExactEvmScheme(poor) }], spendControls: { allowedAssets: true } })(
      url(), { method: "POST", body: JSON.stringify({ prompt: "code" }) });
    return answer.status === 402;
  });
  await check("an answer that fails is not charged", async () => {
    const answer = await buy("nothing of that name");
    return answer.status === 422 && (await balance(payTo)) === 2500n;
  });
  await check("version 1 pays, too", async () => {
    const answer = await ask402({ prompt: "code" }, v1(await sign()));
    const said = JSON.parse(Buffer.from(answer.headers.get("x-payment-response"), "base64"));
    return answer.status === 200 && said.success && (await balance(payTo)) === 5000n && earned("Ada") === "0.002025000000 USDC";
  });

  // Pending: blocks are held back; nothing is credited until one comes.
  await shop.stop();
  shop = await startShop({ ...config, settle_wait_ms: 500 });
  await ask("evm_setAutomine", [false]);
  let pending;
  await check("a payment that no block has taken credits nothing", async () => {
    const payload = await sign();
    pending = v1(payload);
    const answer = await ask402({ prompt: "code" }, pending);
    return answer.status === 402 && (await answer.json()).error === "settlement_pending" && earned("Ada") === "0.002025000000 USDC";
  });
  await check("kill -9, a block, a new server: the payment is credited once", async () => {
    await shop.stop();
    await ask("evm_mine", []);
    await ask("evm_setAutomine", [true]);
    shop = await startShop(config);
    for (let tries = 0; tries < 50 && earned("Ada") !== "0.004050000000 USDC"; tries += 1) await new Promise((r) => setTimeout(r, 200));
    const again = await ask402({ prompt: "code" }, pending);
    return earned("Ada") === "0.004050000000 USDC" && again.status === 402 && (await balance(payTo)) === 7500n;
  });

  // Somebody else sends the authorisation first: the money has moved all the same.
  await check("an authorisation that a stranger sent first is found and credited", async () => {
    const payload = await sign();
    await ask("evm_setAutomine", [false]);
    const { authorization: a, signature: s } = payload;
    const stranger = wallet.writeContract({
      address: token, abi, functionName: "transferWithAuthorization", gas: 200_000n, gasPrice: 100_000_000_000n,
      args: [a.from, a.to, BigInt(a.value), BigInt(a.validAfter), BigInt(a.validBefore), a.nonce, parseInt(s.slice(130), 16), s.slice(0, 66), `0x${s.slice(66, 130)}`],
    });
    await stranger;
    const answer = ask402({ prompt: "code" }, v1(payload));
    await new Promise((r) => setTimeout(r, 700));
    await ask("evm_mine", []);
    await ask("evm_setAutomine", [true]);
    const found = `${(await answer).status} ${await balance(payTo)} ${earned("Ada")}`;
    return found === "200 10000 0.006075000000 USDC" || `${found} ${await (await answer).text()}`;
  });

  // Prepaid.
  const customer = { "prepaid-authorization": "acme:0123456789abcdef0123", "content-type": "application/json" };
  await check("a top-up is paid by x402 and shown", async () => {
    const answer = await paying(`${shop.url}/v1/prepaid/acme/top-up?amount=0.006`, { method: "POST", headers: customer });
    const shown = await (await fetch(`${shop.url}/v1/prepaid/acme`, { headers: customer })).json();
    return answer.status === 200 && shown.balance === "0.006000000000 USDC" && (await balance(payTo)) === 16_000n;
  });
  const debit = (key, prompt = "hamlet") => ask402({ prompt }, { ...customer, "idempotency-key": key });
  await check("responses are debited once per key and routed", async () => {
    const answers = [await debit("a"), await debit("a"), await debit("b")];
    const left = answers.map((answer) => `${answer.status} ${answer.headers.get("prepaid-balance")}`).join();
    return (left === "200 0.003500000000 USDC,200 0.003500000000 USDC,200 0.001000000000 USDC" && earned("Will") === "0.004556250000 USDC") || left;
  });
  await check("what is not there is not spent", async () => {
    const answer = await debit("c");
    return answer.status === 402 && (await answer.json()).error === "insufficient_prepaid_balance";
  });
  await check("a stranger sees and spends nothing", async () => {
    const wrong = { ...customer, "prepaid-authorization": "acme:ffffffffffffffffffff", "idempotency-key": "d" };
    const seen = await fetch(`${shop.url}/v1/prepaid/acme`, { headers: wrong });
    return seen.status === 401 && (await ask402({ prompt: "code" }, wrong)).status === 401;
  });

  if (python) {
    await check("PyPI x402 pays with requests", async () => {
      const before = await balance(payTo);
      const run = spawnSync(python, [checkPy, url()], { encoding: "utf8", input: payerKey });
      return (run.status === 0 && run.stdout.includes("fn main") && (await balance(payTo)) === before + 2500n) || run.stdout + run.stderr;
    });
  }
  await check("the book verifies and holds what the chain holds", async () => {
    const run = spawnSync(look, ["verify", book], { encoding: "utf8" });
    const report = JSON.parse(run.stdout);
    return (report.currencies[0].assets_subunits === String((await balance(payTo)) * 1_000_000n)) || run.stdout + run.stderr;
  });
}

try {
  await main();
} catch (error) {
  note("the suite", false, error.stack);
} finally {
  children.forEach((stop) => stop());
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
