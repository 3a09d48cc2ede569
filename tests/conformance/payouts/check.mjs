// check.mjs FOLDER…: on-chain files of each run folder against OpenZeppelin, ethers, viem and a real chain.
// A folder `X-2` is the period after folder `X-1`. Prints one line per failure and `N passed, M failed`.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";
import { StandardMerkleTree } from "@openzeppelin/merkle-tree";
import { Contract, ContractFactory, JsonRpcProvider, getAddress, parseUnits } from "ethers";
import solc from "solc";
import { encodeAbiParameters, keccak256, parseAbiParameters } from "viem";

const require = createRequire(import.meta.url);
let passed = 0;
let failed = 0;

function note(name, ok, why = "not so") {
  if (ok) passed += 1;
  else {
    failed += 1;
    console.log(`FAILED ${name}: ${why}`);
  }
}

async function check(name, test) {
  try {
    note(name, (await test()) === true);
  } catch (error) {
    note(name, false, error.shortMessage ?? error.message);
  }
}

async function reverts(name, action) {
  try {
    await action();
    note(name, false, "it was accepted");
  } catch (error) {
    note(name, /revert/i.test(error.message), error.message);
  }
}

const leafTypes = parseAbiParameters("address, address, uint256");
const read = (dir, file) => (existsSync(join(dir, file)) ? readFileSync(join(dir, file), "utf8") : undefined);

async function checkTree(dir, file) {
  const text = read(dir, file);
  if (text === undefined) return undefined;
  const name = `${basename(dir)} ${file}`;
  let tree;
  await check(`${name} loads`, () => {
    tree = StandardMerkleTree.load(JSON.parse(text));
    tree.validate();
    return true;
  });
  if (tree === undefined) return undefined;
  await check(`${name} has the library's bytes`, () => `${JSON.stringify(tree.dump(), null, 2)}\n` === text);
  await check(`${name} is built again from its values`, () => {
    const values = JSON.parse(text).values.map(({ value }) => value);
    return StandardMerkleTree.of(values, ["address", "address", "uint256"]).root === tree.root;
  });
  await check(`${name}: viem encodes the same leaves`, () =>
    [...tree.entries()].every(([i, [account, token, amount]]) => {
      const leaf = keccak256(keccak256(encodeAbiParameters(leafTypes, [account, token, BigInt(amount)])));
      return leaf === tree.leafHash(tree.at(i)) && getAddress(account) === account;
    }));
  return tree;
}

async function checkSplitsAndSafe(dir, tree) {
  const name = basename(dir);
  const splits = JSON.parse(read(dir, "splits-v2.json"));
  const amounts = new Map([...tree.entries()].map(([, [account, , amount]]) => [account, BigInt(amount)]));
  await check(`${name} splits: viem encodes the struct`, () => {
    const struct = parseAbiParameters("(address[] recipients, uint256[] allocations, uint256 totalAllocation, uint16 distributionIncentive)");
    const split = { ...splits, allocations: splits.allocations.map(BigInt), totalAllocation: BigInt(splits.totalAllocation) };
    return encodeAbiParameters(struct, [split]).length > 2;
  });
  await check(`${name} splits: floor shares of the total are the amounts`, () => {
    const total = BigInt(splits.totalAllocation);
    const sum = splits.allocations.reduce((a, b) => a + BigInt(b), 0n);
    const same = (recipient, i) => (total * BigInt(splits.allocations[i])) / total === amounts.get(recipient);
    return sum === total && splits.recipients.every(same) && splits.recipients.length === amounts.size;
  });
  await check(`${name} safe.csv: every line is an amount of its address`, () => {
    const [header, ...lines] = read(dir, "safe.csv").trimEnd().split("\n");
    const parsed = lines.map((line) => line.split(","));
    const decimals = parsed[0][3].split(".")[1]?.length ?? 0;
    const same = ([type, , receiver, amount, id]) =>
      type === "erc20" && id === "" && parseUnits(amount, decimals) === amounts.get(getAddress(receiver));
    return header === "token_type,token_address,receiver,amount,id" && parsed.length === amounts.size && parsed.every(same);
  });
}

function compileDistributor() {
  const content = readFileSync(new URL("Distributor.sol", import.meta.url), "utf8");
  const input = {
    language: "Solidity",
    sources: { "Distributor.sol": { content } },
    settings: { optimizer: { enabled: true }, outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } } },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  const errors = (output.errors ?? []).filter(({ severity }) => severity === "error");
  if (errors.length > 0) throw new Error(errors[0].formattedMessage);
  const { abi, evm } = output.contracts["Distributor.sol"].Distributor;
  return { abi, bytecode: evm.bytecode.object };
}

async function startChain() {
  const anvil = spawn("node_modules/.bin/anvil", ["--port", "0", "--host", "127.0.0.1", "--gas-limit", "1000000000"], { detached: true });
  const stop = () => {
    try {
      process.kill(-anvil.pid);
    } catch {
      // It has ended by itself.
    }
  };
  const port = await new Promise((resolve, reject) => {
    let text = "";
    anvil.stdout.on("data", (data) => {
      text += data;
      const found = /Listening on 127\.0\.0\.1:(\d+)/.exec(text);
      if (found) resolve(found[1]);
    });
    anvil.on("exit", () => reject(new Error("anvil ended")));
    setTimeout(() => reject(new Error("anvil did not start in 30 s")), 30_000).unref();
  });
  const provider = new JsonRpcProvider(`http://127.0.0.1:${port}`, undefined, { cacheTimeout: -1, polling: true, pollingInterval: 20 });
  return { provider, signer: await provider.getSigner(0), stranger: await provider.getSigner(1), stop };
}

const deploy = async ({ abi, bytecode }, signer, ...args) => {
  const contract = await new ContractFactory(abi, bytecode, signer).deploy(...args);
  await contract.waitForDeployment();
  return contract;
};
const done = async (sent) => (await sent).wait();

async function claimUniswap(chain, dir) {
  const name = `${basename(dir)} uniswap`;
  const file = JSON.parse(read(dir, "uniswap.json"));
  const token = await deploy(require("@uniswap/merkle-distributor/build/TestERC20.json"), chain.signer, "Test", "T", 0);
  const artifact = require("@uniswap/merkle-distributor/build/MerkleDistributor.json");
  const distributor = await deploy(artifact, chain.signer, await token.getAddress(), file.merkleRoot);
  await done(token.setBalance(await distributor.getAddress(), BigInt(file.tokenTotal)));
  const claims = Object.entries(file.claims);
  await check(`${name}: the total is the sum`, () => claims.reduce((sum, [, { amount }]) => sum + BigInt(amount), 0n) === BigInt(file.tokenTotal));
  await check(`${name}: indices are ranks of the texts`, () =>
    [...Object.keys(file.claims)].sort().every((account, rank) => file.claims[account].index === rank && getAddress(account) === account));
  await check(`${name}: amounts are whole bytes`, () => claims.every(([, { amount }]) => /^0x([0-9a-f]{2})+$/.test(amount)));
  for (const [account, { index, amount, proof }] of claims) {
    await reverts(`${name}: a forged amount`, () => distributor.claim.staticCall(index, account, BigInt(amount) + 1n, proof));
    await reverts(`${name}: another's claim`, () => distributor.claim.staticCall(index, chain.stranger.address, amount, proof));
    await check(`${name}: ${account} claims`, async () => {
      await done(distributor.claim(index, account, amount, proof));
      return (await token.balanceOf(account)) === BigInt(amount) && (await distributor.isClaimed(index));
    });
    await reverts(`${name}: a repeated claim`, () => distributor.claim.staticCall(index, account, amount, proof));
  }
  await check(`${name}: nothing is left over`, async () => (await token.balanceOf(await distributor.getAddress())) === 0n);
}

// The trees name a token that is not deployed here, so each is built again over the token that is; the roots of the
// files themselves are compared by checkTree.
const over = (tree, token) =>
  StandardMerkleTree.of([...tree.entries()].map(([, [account, , amount]]) => [account, token, amount]), ["address", "address", "uint256"]);

async function claimCumulative(chain, name, first, second, compiled) {
  const token = await deploy(require("@uniswap/merkle-distributor/build/TestERC20.json"), chain.signer, "Test", "T", 0);
  const at = await token.getAddress();
  const distributor = await deploy(compiled, chain.signer, 3600);
  await done(token.setBalance(await distributor.getAddress(), 1n << 120n));
  const [one, two] = [over(first, at), over(second, at)];
  const claim = (tree, i, how = distributor.claim) => how(...tree.at(i), tree.getProof(i));
  const advance = async () => {
    await chain.provider.send("evm_increaseTime", [3600]);
    await chain.provider.send("evm_mine", []);
    await done(distributor.acceptRoot());
  };
  await reverts(`${name}: no root, no claim`, () => claim(one, 0, distributor.claim.staticCall));
  await reverts(`${name}: a stranger submits no root`, () => distributor.connect(chain.stranger).submitRoot.staticCall(one.root));
  await done(distributor.submitRoot(one.root));
  await reverts(`${name}: a root must wait`, () => distributor.acceptRoot.staticCall());
  await reverts(`${name}: a waiting root pays nothing`, () => claim(one, 0, distributor.claim.staticCall));
  await advance();
  const n = Math.min(one.length, 30);
  for (let i = 0; i < n; i += 1) {
    const [account, , amount] = one.at(i);
    await reverts(`${name}: a forged amount`, () => distributor.claim.staticCall(account, at, BigInt(amount) + 1n, one.getProof(i)));
    // Every third payee skips the first period.
    if (i % 3 === 2) continue;
    await check(`${name}: ${account} claims`, async () => {
      await done(claim(one, i));
      return (await token.balanceOf(account)) === BigInt(amount);
    });
    await reverts(`${name}: a repeated claim`, () => claim(one, i, distributor.claim.staticCall));
  }
  await done(distributor.submitRoot(two.root));
  await done(distributor.revokePendingRoot());
  await reverts(`${name}: a revoked root is not accepted`, () => distributor.acceptRoot.staticCall());
  await done(distributor.submitRoot(two.root));
  await advance();
  for (let i = 0; i < n; i += 1) {
    await reverts(`${name}: an old proof`, () => claim(one, i, distributor.claim.staticCall));
    const [account] = one.at(i);
    const later = [...two.entries()].find(([, value]) => value[0] === account);
    await check(`${name}: ${account} is still in the later tree, with no less`, () => BigInt(later[1][2]) >= BigInt(one.at(i)[2]));
    if (i % 3 !== 2 && later[1][2] === one.at(i)[2]) continue;
    await check(`${name}: ${account} claims the difference`, async () => {
      await done(claim(two, later[0]));
      return (await token.balanceOf(account)) === BigInt(later[1][2]);
    });
    await reverts(`${name}: a repeated later claim`, () => claim(two, later[0], distributor.claim.staticCall));
  }
}

const folders = process.argv.slice(2);
const trees = new Map();
for (const dir of folders) {
  const tree = await checkTree(dir, "merkle.json");
  trees.set(dir, await checkTree(dir, "cumulative.json"));
  if (tree) await checkSplitsAndSafe(dir, tree);
}
const chain = await startChain();
try {
  const compiled = compileDistributor();
  for (const dir of folders.filter((dir) => read(dir, "uniswap.json") !== undefined)) await claimUniswap(chain, dir);
  let pairs = 0;
  for (const dir of folders.filter((dir) => dir.endsWith("-1") && trees.get(dir))) {
    const later = trees.get(dir.replace(/-1$/, "-2"));
    if (!later) continue;
    pairs += 1;
    await claimCumulative(chain, `${basename(dir)} cumulative`, trees.get(dir), later, compiled);
  }
  note("two periods were played", pairs > 0);
} catch (error) {
  note("the chain", false, error.message);
} finally {
  chain.stop();
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
