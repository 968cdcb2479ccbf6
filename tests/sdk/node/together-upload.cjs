// together-ai's own files.upload. On Node it works only as CommonJS, without its check of the file (which knows no batch
// lines), with its server named before it is loaded, and with a fetch that says that what it streams is one-way.
const fs = require("node:fs");

const { MILL_ORIGIN, MILL_KEY } = process.env;
process.env.TOGETHER_API_BASE_URL = `${MILL_ORIGIN}/v1`;
const { fetch } = globalThis;
globalThis.fetch = (url, options) => fetch(url, { duplex: "half", ...options });
const Together = require("together-ai");

const text = '{"custom_id": "0", "body": {"model": "plain/model", "messages": [{"role": "user", "content": "Hi"}]}}\n';

async function main() {
  const client = new Together({ baseURL: `${MILL_ORIGIN}/v1`, apiKey: MILL_KEY });
  fs.writeFileSync("uploaded.jsonl", text);
  const made = await client.files.upload("uploaded.jsonl", "batch-api", false);
  const content = await (await client.files.content(made.id)).text();
  process.stdout.write(JSON.stringify({ ...made, content }));
}

main();
