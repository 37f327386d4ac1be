"""The `openai` package against a running Remuda, streaming and not. Arguments: base URL, key."""

import sys

import openai

BASE_URL, KEY = sys.argv[1:]
MODEL = "remuda-demo"
QUESTION = [{"role": "user", "content": "3*67"}]

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY, max_retries=0)


def equal(seen, expected):
    if seen != expected:
        raise SystemExit(f"expected {expected!r}, got {seen!r}")


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise SystemExit(f"expected {kind.__name__}")


answer = client.chat.completions.create(model=MODEL, messages=QUESTION)
equal(answer.choices[0].message.content, "201")
equal(answer.choices[0].finish_reason, "stop")
equal(answer.usage.completion_tokens, 4)

pieces = [
    chunk.choices[0].delta.content or ""
    for chunk in client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
    if chunk.choices
]
equal("".join(pieces), "201")
if len(pieces) < 3:
    raise SystemExit(f"not streamed: {pieces!r}")

parts = [{"role": "user", "content": [{"type": "text", "text": "3*67"}]}]
equal(client.chat.completions.create(model=MODEL, messages=parts).choices[0].message.content, "201")

text = client.completions.create(model=MODEL, prompt="<|user|>3*67<|assistant|>", max_tokens=8).choices[0].text
equal(text, "201")
streamed = client.completions.create(model=MODEL, prompt="<|user|>3*67<|assistant|>", max_tokens=8, stream=True)
equal("".join(chunk.choices[0].text for chunk in streamed if chunk.choices), "201")

equal(client.responses.create(model=MODEL, input="3*67").output_text, "201")
events = list(client.responses.create(model=MODEL, input="3*67", stream=True))
equal("".join(event.delta for event in events if event.type == "response.output_text.delta"), "201")
equal(events[-1].type, "response.completed")

equal([model.id for model in client.models.list()], sorted([MODEL, "remuda-embed"]))
equal(client.models.retrieve(MODEL).id, MODEL)

vectors = client.embeddings.create(model="remuda-embed", input=["one", "two"]).data
equal(len(vectors), 2)
equal(len(vectors[0].embedding), 96)

refused(openai.NotFoundError, lambda: client.chat.completions.create(model="nobody", messages=QUESTION))
error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages="3*67"))
equal(error.param, "messages")
stranger = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="wrong", max_retries=0)
refused(openai.AuthenticationError, lambda: stranger.chat.completions.create(model=MODEL, messages=QUESTION))
print("openai: ok")
