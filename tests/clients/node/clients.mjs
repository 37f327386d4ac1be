// The `openai` and `@anthropic-ai/sdk` packages against a running Remuda, streaming and not. Arguments: base URL, key.

import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const model = "remuda-demo";
const messages = [{ role: "user", content: "3*67" }];

const openai = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey, maxRetries: 0 });
const answer = await openai.chat.completions.create({ model, messages });
assert.equal(answer.choices[0].message.content, "201");
let text = "";
for await (const chunk of await openai.chat.completions.create({ model, messages, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, "201");
const stranger = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "wrong", maxRetries: 0 });
await assert.rejects(stranger.chat.completions.create({ model, messages }), OpenAI.AuthenticationError);
await assert.rejects(openai.chat.completions.create({ model: "nobody", messages }), OpenAI.NotFoundError);

const anthropic = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const message = await anthropic.messages.create({ model, max_tokens: 16, messages });
assert.equal(message.content[0].text, "201");
const final = await anthropic.messages.stream({ model, max_tokens: 16, messages }).finalMessage();
assert.equal(final.content[0].text, "201");
await assert.rejects(anthropic.messages.create({ model: "nobody", max_tokens: 1, messages }), Anthropic.NotFoundError);
console.log("node: ok");
