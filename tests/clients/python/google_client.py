"""The `google-genai` package against a running Remuda, streaming and not. Arguments: base URL, key."""

import sys

from google import genai
from google.genai import errors, types

BASE_URL, KEY = sys.argv[1:]
MODEL = "remuda-demo"


def client(key):
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=BASE_URL))


def equal(seen, expected):
    if seen != expected:
        raise SystemExit(f"expected {expected!r}, got {seen!r}")


def refused(status, call):
    try:
        call()
    except errors.APIError as error:
        equal(error.code, status)
        return error
    raise SystemExit(f"expected {status}")


# It closes itself when nobody holds it any more.
google, stranger = client(KEY), client("wrong")
models = google.models

answer = models.generate_content(model=MODEL, contents="3*67")
equal(answer.text, "201")
equal(answer.candidates[0].finish_reason, types.FinishReason.STOP)
equal(answer.usage_metadata.candidates_token_count, 4)

pieces = list(models.generate_content_stream(model=MODEL, contents="3*67"))
equal("".join(piece.text or "" for piece in pieces), "201")
equal(pieces[-1].candidates[0].finish_reason, types.FinishReason.STOP)
if len(pieces) < 3:
    raise SystemExit(f"not streamed: {pieces!r}")

config = types.GenerateContentConfig(system_instruction="be brief", temperature=0, top_k=40, max_output_tokens=2)
answer = models.generate_content(model=MODEL, contents=["say", "3*67"], config=config)
equal(answer.candidates[0].finish_reason, types.FinishReason.MAX_TOKENS)

chat = google.chats.create(model=MODEL)
equal(chat.send_message("2*3").text, "6")
equal(chat.send_message("3*67").text, "201")


def add(first: int, second: int) -> int:
    """Adds."""
    return first + second


equal(models.generate_content(model=MODEL, contents="3*67", config=types.GenerateContentConfig(tools=[add])).text, "201")

refused(404, lambda: models.generate_content(model="nobody", contents="x"))
refused(404, lambda: list(models.generate_content_stream(model="nobody", contents="x")))
refused(401, lambda: stranger.models.generate_content(model=MODEL, contents="x"))
search = types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())])
error = refused(400, lambda: models.generate_content(model=MODEL, contents="x", config=search))
if "googleSearch" not in str(error):
    raise SystemExit(f"not named: {error}")
