// together-ai from npm: every call that it has for us, but files.upload, which cannot work on Node (it goes to a server
// of its own, and streams without saying so). Here fetch uploads; the rest is the SDK's.
import Together from "together-ai";
import {
  MODEL, PATIENCE_SECONDS, STEADY_SECONDS, assert, base, finished, key, messages, model, parsed, picture, refused, run,
  sound, togetherLines, tool,
} from "./checks.mjs";

const client = new Together({ baseURL: base, apiKey: key, maxRetries: 0 });

async function upload(text, name) {
  const form = new FormData();
  form.set("purpose", "batch-api");
  form.set("file", new Blob([text]), name);
  const answer = await fetch(`${base}/files`, {
    method: "POST", body: form, headers: { authorization: `Bearer ${key}` },
  });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.json();
}

await run({
  async chat() {
    const answer = await client.chat.completions.create({ model: MODEL, messages });
    assert.match(answer.choices[0].message.content, /^Rehearsal answer/);
    const seen = await client.chat.completions.create({ model: MODEL, messages: picture, tools: [tool] });
    assert.equal(seen.choices[0].message.tool_calls[0].function.name, "go");
  },

  async stream() {
    const began = performance.now();
    const moments = [];
    let text = "";
    const asked = { model: model("steady", "together-node-streams"), messages, stream: true };
    for await (const chunk of await client.chat.completions.create(asked)) {
      moments.push((performance.now() - began) / 1000);
      text += chunk.choices[0]?.delta.content ?? "";
    }
    assert.match(text, /^Rehearsal answer/);
    assert.ok(moments.at(-1) - moments[0] > STEADY_SECONDS / 4, `it came at once: ${moments}`);
  },

  async completions() {
    const answer = await client.completions.create({ model: MODEL, prompt: "Once", max_tokens: 32 });
    assert.ok(answer.choices[0].text);
  },

  async embeddings() {
    const answer = await client.embeddings.create({ model: "BAAI/bge-base-en-v1.5", input: "mill" });
    assert.equal(typeof answer.data[0].embedding[0], "number");
  },

  async rerank() {
    const documents = ["stable", "mill by the river"];
    const asked = { model: "Salesforce/Llama-Rank-V1", query: "river mill", documents, top_n: 1 };
    assert.equal((await client.rerank.create(asked)).results[0].index, 1);
  },

  async images() {
    const asked = { model: "flux", prompt: "A mill", width: 256, height: 128, response_format: "base64" };
    assert.ok((await client.images.generate(asked)).data[0].b64_json.startsWith("iVBOR"));
  },

  async speech() {
    const asked = { model: "cartesia/sonic", voice: "friendly", input: "The mill.", response_format: "wav" };
    const answer = await client.audio.speech.create(asked);
    assert.equal(Buffer.from(await answer.arrayBuffer()).subarray(0, 4).toString(), "RIFF");
  },

  async transcriptions() {
    const file = new File([sound], "mill.mp3");
    const asked = { model: "openai/whisper-large-v3", file };
    assert.ok((await client.audio.transcriptions.create(asked)).text);
    const verbose = await client.audio.transcriptions.create({
      ...asked, response_format: "verbose_json", timestamp_granularities: ["word"],
    });
    assert.ok(verbose.words[0].word);
  },

  async models() {
    const names = (await client.models.list()).map((found) => found.id);
    assert.ok(names.includes("MiniMaxAI/MiniMax-M1-40k"));
  },

  async errors() {
    const ask = (more) => client.chat.completions.create({ model: MODEL, messages, ...more });
    await refused(Together.BadRequestError, () => ask({ temperature: 3 }));
    await refused(Together.NotFoundError, () => ask({ model: "missing/four" }));
    await refused(Together.NotFoundError, () => client.batches.retrieve("batch_0000"));
    const stranger = client.withOptions({ apiKey: "wrong" });
    const error = await refused(Together.AuthenticationError, () => stranger.models.list());
    assert.match(error.message, /The API key is not one of this server's/);
  },

  async giving_up_and_asking_again() {
    const impatient = new Together({ baseURL: base, apiKey: key, timeout: PATIENCE_SECONDS * 1000, maxRetries: 9 });
    const answer = await impatient.chat.completions.create({ model: model("slow", "together-node"), messages });
    assert.match(answer.choices[0].message.content, /^Rehearsal answer/);
  },

  async two_at_once() {
    const ask = () => client.chat.completions.create({ model: model("steady", "together-node-twice"), messages });
    await Promise.all([ask(), ask()]);
  },

  async idempotency_key() {
    const headers = { "Idempotency-Key": "the order of Together's mill from Node" };
    const ask = () =>
      client.chat.completions.create({ model: model("plain", "together-node-once"), messages }, { headers });
    const [first, again] = [await ask(), await ask()];
    assert.deepEqual(again, first);
  },

  async files() {
    const text = togetherLines(3);
    const { id } = await upload(text, "mill.jsonl");
    const found = await client.files.retrieve(id);
    assert.deepEqual([found.filename, found.FileType, found.purpose, found.Processed], ["mill.jsonl", "jsonl", "batch-api", true]);
    assert.ok((await client.files.list()).data.some((file) => file.id === id));
    assert.equal(await (await client.files.content(id)).text(), text);
    await client.files.delete(id);
    await refused(Together.NotFoundError, () => client.files.retrieve(id));
  },

  async batch() {
    const input = await upload(togetherLines(4) + togetherLines(1, { temperature: 3 }, 4), "prompts.jsonl");
    const { job } = await client.batches.create({ input_file_id: input.id, endpoint: "/v1/chat/completions" });
    const batch = await finished(() => client.batches.retrieve(job.id));
    assert.deepEqual([batch.status, batch.progress], ["COMPLETED", 100]);
    const answers = parsed(await (await client.files.content(batch.output_file_id)).text());
    assert.deepEqual(answers.map((answer) => answer.custom_id), ["0", "1", "2", "3"]);
    const [failure] = parsed(await (await client.files.content(batch.error_file_id)).text());
    assert.equal(failure.response.status_code, 400);
    assert.ok((await client.batches.list()).some((found) => found.id === job.id));
  },

  async batch_cancelled() {
    const input = await upload(togetherLines(30, { model: model("slow", "together-node-cancelled") }), "slow.jsonl");
    const { job } = await client.batches.create({ input_file_id: input.id, endpoint: "/v1/chat/completions" });
    await client.batches.cancel(job.id);
    assert.equal((await finished(() => client.batches.retrieve(job.id))).status, "CANCELLED");
  },
});
