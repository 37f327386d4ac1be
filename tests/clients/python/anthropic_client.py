"""The `anthropic` package against a running Remuda, streaming and not. Arguments: base URL, key."""

import sys

import anthropic

BASE_URL, KEY = sys.argv[1:]
MODEL = "remuda-demo"
QUESTION = [{"role": "user", "content": "3*67"}]

client = anthropic.Anthropic(base_url=BASE_URL, api_key=KEY, max_retries=0)


def equal(seen, expected):
    if seen != expected:
        raise SystemExit(f"expected {expected!r}, got {seen!r}")


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise SystemExit(f"expected {kind.__name__}")


message = client.messages.create(model=MODEL, max_tokens=16, messages=QUESTION)
equal(message.content[0].text, "201")
equal(message.stop_reason, "end_turn")
equal(message.usage.output_tokens > 0, True)

with client.messages.stream(model=MODEL, max_tokens=16, messages=QUESTION) as stream:
    pieces = list(stream.text_stream)
    equal(stream.get_final_message().stop_reason, "end_turn")
equal("".join(pieces), "201")
if len(pieces) < 3:
    raise SystemExit(f"not streamed: {pieces!r}")

equal(client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens > 0, True)
equal(MODEL in [model.id for model in client.models.list()], True)

refused(anthropic.NotFoundError, lambda: client.messages.create(model="nobody", max_tokens=1, messages=QUESTION))
refused(anthropic.BadRequestError, lambda: client.messages.create(model=MODEL, max_tokens=1, messages="3*67"))
stranger = anthropic.Anthropic(base_url=BASE_URL, api_key="wrong", max_retries=0)
refused(anthropic.AuthenticationError, lambda: stranger.messages.create(model=MODEL, max_tokens=1, messages=QUESTION))
print("anthropic: ok")
