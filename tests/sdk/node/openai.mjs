// openai from npm: every call that it has for us.
import OpenAI, { toFile } from "openai";
import {
  MODEL, PATIENCE_SECONDS, STEADY_SECONDS, assert, base, finished, key, messages, model, openaiLines, parsed, picture,
  refused, run, sound, tool,
} from "./checks.mjs";

const client = new OpenAI({ baseURL: base, apiKey: key, maxRetries: 0 });
const file = (text, name) => toFile(Buffer.from(text), name);

await run({
  async chat() {
    const answer = await client.chat.completions.create({ model: MODEL, messages });
    assert.match(answer.choices[0].message.content, /^Rehearsal answer/);
    assert.ok(answer.usage.total_tokens > 0);
    const seen = await client.chat.completions.create({ model: MODEL, messages: picture, tools: [tool] });
    assert.equal(seen.choices[0].message.tool_calls[0].function.name, "go");
  },

  async stream() {
    const began = performance.now();
    const moments = [];
    let text = "";
    const stream = await client.chat.completions.create({
      model: model("steady", "openai-node-streams"), messages, stream: true, stream_options: { include_usage: true },
    });
    let usage;
    for await (const chunk of stream) {
      moments.push((performance.now() - began) / 1000);
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.match(text, /^Rehearsal answer/);
    assert.ok(usage.total_tokens > 0);
    assert.ok(moments.at(-1) - moments[0] > STEADY_SECONDS / 4, `it came at once: ${moments}`);
  },

  async completions() {
    const answer = await client.completions.create({ model: MODEL, prompt: "Once" });
    assert.ok(answer.choices[0].text);
  },

  async embeddings() {
    const input = ["mill", "stable"];
    const answer = await client.embeddings.create({ model: "text-embedding-3-small", input, dimensions: 64 });
    assert.deepEqual(answer.data.map((entry) => entry.embedding.length), [64, 64]);
    assert.equal(typeof answer.data[0].embedding[0], "number");
  },

  async images() {
    const asked = { model: "dall-e-2", prompt: "A mill", size: "256x256", response_format: "b64_json" };
    const answer = await client.images.generate(asked);
    assert.ok(answer.data[0].b64_json.startsWith("iVBOR"));
  },

  async speech() {
    const asked = { model: "tts-1", voice: "alloy", input: "The mill.", response_format: "mp3" };
    const answer = await client.audio.speech.create(asked);
    const bytes = Buffer.from(await answer.arrayBuffer());
    assert.equal(bytes.subarray(0, 3).toString(), "ID3");
  },

  async transcriptions() {
    const plain = await client.audio.transcriptions.create({ model: "whisper-1", file: await file(sound, "mill.mp3") });
    assert.ok(plain.text);
    const verbose = await client.audio.transcriptions.create({
      model: "whisper-1", file: await file(sound, "mill.mp3"), response_format: "verbose_json",
      timestamp_granularities: ["word", "segment"],
    });
    assert.ok(verbose.words[0].word);
    assert.equal(verbose.segments[0].id, 0);
  },

  async models() {
    const names = [];
    for await (const found of client.models.list()) names.push(found.id);
    assert.ok(names.includes("gpt-4o-mini"));
    assert.equal((await client.models.retrieve("gpt-4o-mini")).id, "gpt-4o-mini");
  },

  async errors() {
    const ask = (more) => client.chat.completions.create({ model: MODEL, messages, ...more });
    await refused(OpenAI.BadRequestError, () => ask({ temperature: 3 }), { param: "temperature" });
    await refused(OpenAI.NotFoundError, () => ask({ model: "missing/three" }), { code: "model_not_available" });
    await refused(OpenAI.NotFoundError, () => client.files.retrieve("file-0000"));
    const stranger = client.withOptions({ apiKey: "wrong" });
    await refused(OpenAI.AuthenticationError, () => stranger.models.list(), { code: "invalid_api_key" });
  },

  async giving_up_and_asking_again() {
    const impatient = new OpenAI({ baseURL: base, apiKey: key, timeout: PATIENCE_SECONDS * 1000, maxRetries: 9 });
    const answer = await impatient.chat.completions.create({ model: model("slow", "openai-node"), messages });
    assert.match(answer.choices[0].message.content, /^Rehearsal answer/);
  },

  async two_at_once() {
    const ask = () => client.chat.completions.create({ model: model("steady", "openai-node-twice"), messages });
    await Promise.all([ask(), ask()]);
  },

  async idempotency_key() {
    const headers = { "Idempotency-Key": "the order of the mill from Node" };
    const ask = () =>
      client.chat.completions.create({ model: model("plain", "openai-node-once"), messages }, { headers });
    const [first, again] = [await ask(), await ask()];
    assert.deepEqual(again, first);
  },

  async files() {
    const text = openaiLines(3);
    const made = await client.files.create({
      purpose: "batch", file: await file(text, "mill.jsonl"), expires_after: { anchor: "created_at", seconds: 3600 },
    });
    assert.deepEqual([made.object, made.filename, made.purpose, made.bytes], ["file", "mill.jsonl", "batch", text.length]);
    assert.equal((await client.files.retrieve(made.id)).status, "processed");
    assert.equal(await (await client.files.content(made.id)).text(), text);
    const names = [];
    for await (const found of client.files.list({ purpose: "batch" })) names.push(found.id);
    assert.ok(names.includes(made.id));
    assert.equal((await client.files.delete(made.id)).deleted, true);
    await refused(OpenAI.NotFoundError, () => client.files.retrieve(made.id));
  },

  async uploads() {
    const text = openaiLines(4);
    const upload = await client.uploads.create({
      bytes: text.length, filename: "parts.jsonl", mime_type: "application/jsonl", purpose: "batch",
    });
    const ids = [];
    for (const part of [text.slice(0, 100), text.slice(100)]) {
      ids.push((await client.uploads.parts.create(upload.id, { data: await file(part, "part") })).id);
    }
    const done = await client.uploads.complete(upload.id, { part_ids: ids });
    assert.equal(done.status, "completed");
    assert.equal(await (await client.files.content(done.file.id)).text(), text);
  },

  async batch() {
    const input = await file(openaiLines(4) + openaiLines(1, { temperature: 3 }, 4), "prompts.jsonl");
    const { id: input_file_id } = await client.files.create({ purpose: "batch", file: input });
    const terms = { input_file_id, endpoint: "/v1/chat/completions", completion_window: "24h" };
    const made = await client.batches.create({ ...terms, metadata: { for: "the mill" } });
    assert.deepEqual(made.metadata, { for: "the mill" });
    const batch = await finished(() => client.batches.retrieve(made.id));
    assert.equal(batch.status, "completed");
    assert.deepEqual(batch.request_counts, { total: 5, completed: 4, failed: 1 });
    const answers = parsed(await (await client.files.content(batch.output_file_id)).text());
    assert.deepEqual(answers.map((answer) => answer.custom_id), ["0", "1", "2", "3"]);
    const [failure] = parsed(await (await client.files.content(batch.error_file_id)).text());
    assert.equal(failure.response.status_code, 400);
    const ids = [];
    for await (const found of client.batches.list({ limit: 1 })) ids.push(found.id);
    assert.ok(ids.includes(made.id));
    await refused(OpenAI.ConflictError, () => client.batches.cancel(made.id));
  },

  async batch_cancelled() {
    const input = await file(openaiLines(30, { model: model("slow", "openai-node-cancelled") }), "slow.jsonl");
    const { id: input_file_id } = await client.files.create({ purpose: "batch", file: input });
    const terms = { input_file_id, endpoint: "/v1/chat/completions", completion_window: "24h" };
    const made = await client.batches.create(terms);
    assert.match((await client.batches.cancel(made.id)).status, /^cancell/);
    assert.equal((await finished(() => client.batches.retrieve(made.id))).status, "cancelled");
  },
});
