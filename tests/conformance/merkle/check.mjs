// Reads lines of {dump, root, proofs} on standard input: the bytes of one payout tree, and the root and proofs that our
// code computed. OpenZeppelin's library must load each dump, agree on every hash, build the same tree from the bare
// values, write the same bytes, and refuse the tree once an amount, a node or a proof is changed.
// Prints one line per failure and `N passed, M failed` at the end; exit code 1 when anything failed or nothing ran.
import { createInterface } from "node:readline";
import { StandardMerkleTree } from "@openzeppelin/merkle-tree";

let passed = 0;
let failed = 0;

function check(name, test) {
  let outcome;
  try {
    outcome = test() === true ? null : "not so";
  } catch (error) {
    outcome = error.message;
  }
  if (outcome === null) {
    passed += 1;
  } else {
    failed += 1;
    console.log(`FAILED ${name}: ${outcome}`);
  }
}

function refuses(action) {
  try {
    action();
    return false;
  } catch {
    return true;
  }
}

const text = (dump) => `${JSON.stringify(dump, null, 2)}\n`;

function checkTree(label, { dump, root, proofs }) {
  const data = () => JSON.parse(dump);
  const encoding = data().leafEncoding;
  check(`${label}: leaf encoding`, () => encoding.join() === "address,address,uint256");
  let tree;
  check(`${label}: loads`, () => {
    tree = StandardMerkleTree.load(data());
    tree.validate();
    return true;
  });
  if (tree === undefined) return;
  check(`${label}: root`, () => tree.root === root);
  check(`${label}: dumps the same bytes`, () => text(tree.dump()) === dump);
  const values = data().values.map(({ value }) => value);
  check(`${label}: builds the same tree from the values`, () => {
    return text(StandardMerkleTree.of(values, encoding).dump()) === dump;
  });
  check(`${label}: amounts are strings`, () => values.every((value) => value.every((part) => typeof part === "string")));
  check(`${label}: one proof per leaf`, () => proofs.length === tree.length);
  for (const [idx, value] of values.entries()) {
    const ours = proofs[idx];
    check(`${label}: proof ${idx}`, () => JSON.stringify(tree.getProof(idx)) === JSON.stringify(ours));
    check(`${label}: proof ${idx} verifies`, () => StandardMerkleTree.verify(root, encoding, value, ours));
    const amount = BigInt(value[2]);
    const forged = [value[0], value[1], (amount === 0n ? 1n : amount - 1n).toString()];
    check(`${label}: proof ${idx} is of its amount only`, () => !StandardMerkleTree.verify(root, encoding, forged, ours));
  }
  check(`${label}: a changed amount is refused`, () => {
    const changed = data();
    changed.values[0].value[2] = (BigInt(changed.values[0].value[2]) + 1n).toString().slice(0, 38);
    return refuses(() => StandardMerkleTree.load(changed));
  });
  check(`${label}: a changed node is refused`, () => {
    const changed = data();
    changed.tree[0] = `0x${"12".repeat(32)}`;
    return refuses(() => StandardMerkleTree.load(changed));
  });
}

let count = 0;
for await (const line of createInterface({ input: process.stdin })) {
  if (line === "") continue;
  count += 1;
  checkTree(`tree ${count}`, JSON.parse(line));
}
check("at least one tree came", () => count > 0);
console.log(`${count} trees`);
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
