// Runs checks against a live server and says of each in one JSON line what came of it; test_node.py reads them.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

export { assert };

const { MILL_ORIGIN, MILL_KEY, MILL_PLACE } = process.env;
export const origin = MILL_ORIGIN;
export const base = `${MILL_ORIGIN}/v1`;
export const key = MILL_KEY;

// As in places.py.
export const STEADY_SECONDS = 2;
export const PATIENCE_SECONDS = 2;

export const MODEL = "plain/model";
export const messages = [{ role: "user", content: "How far is the mill?" }];
export const picture = [
  {
    role: "user",
    content: [
      { type: "text", text: "What is this?" },
      { type: "image_url", image_url: { url: "https://example.com/mill.png" } },
    ],
  },
];
export const tool = {
  type: "function",
  function: { name: "go", parameters: { type: "object", properties: { to: { type: "string" } } } },
};
export const sound = new Uint8Array(40_000).fill(0xff);

// A name that only this check of this place uses: its calls can be counted.
export const model = (upstream, about) => `${upstream}/${about}-${MILL_PLACE}`;

const body = (number, more) => ({
  model: MODEL,
  messages: [{ role: "user", content: `How far is mill ${number}?` }],
  ...more,
});

export const openaiLines = (count, more = {}, first = 0) =>
  lines(count, first, (n) => ({
    custom_id: `${n}`,
    method: "POST",
    url: "/v1/chat/completions",
    body: body(n, more),
  }));

export const togetherLines = (count, more = {}, first = 0) =>
  lines(count, first, (n) => ({ custom_id: `${n}`, body: body(n, more) }));

const lines = (count, first, line) =>
  Array.from({ length: count }, (_, n) => `${JSON.stringify(line(first + n))}\n`).join("");

export const parsed = (text) => text.split("\n").filter(Boolean).map((line) => JSON.parse(line));

// Polls a batch until it has ended.
export async function finished(retrieve) {
  for (let n = 0; n < 200; n += 1) {
    const batch = await retrieve();
    if (["completed", "failed", "expired", "cancelled"].includes(batch.status.toLowerCase())) return batch;
    await sleep(100);
  }
  throw new Error("the batch has not ended");
}

// Rejects, with this class of the SDK's.
export async function refused(kind, call, facts = {}) {
  const error = await call().then(() => null, (reason) => reason);
  assert.ok(error instanceof kind, `not ${kind.name}: ${error?.stack ?? "it was answered"}`);
  for (const [name, value] of Object.entries(facts)) assert.equal(error[name], value);
  return error;
}

// All at the same time: most of it is waiting.
export async function run(checks) {
  const one = async ([name, check]) => {
    const told = await check().then(
      () => ({ ok: true }),
      (error) => ({ ok: false, error: `${error?.stack ?? error}` }),
    );
    process.stdout.write(`${JSON.stringify({ check: name, ...told })}\n`);
  };
  await Promise.all(Object.entries(checks).map(one));
}
