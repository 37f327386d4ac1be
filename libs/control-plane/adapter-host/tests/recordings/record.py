"""Records how a real llama-server answers the same request with and without a stream.

    record.py LLAMA_SERVER MODEL [TEMPLATE_WITH_TOOLS TEMPLATE_WITH_THINKING]

Each case becomes one file beside this one: the request, the stream as it came, and the answer without a stream.
The templates are those that llama.cpp has under models/templates; without them the cases that need them are left.
"""

import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

USER = [{"role": "user", "content": "3*67"}]
OTHER = [{"role": "user", "content": "hello"}]
FUNCTION = {"name": "lookup", "description": "d", "parameters": {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["n"]}}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
COUNT = [{"role": "user", "content": "count"}]

PLAIN = {
    "chat": ("chat/completions", {"messages": USER}),
    "chat_cut": ("chat/completions", {"messages": OTHER, "max_tokens": 5}),
    "chat_choices": ("chat/completions", {"messages": USER, "n": 2}),
    "chat_logprobs": ("chat/completions", {"messages": USER, "logprobs": True, "top_logprobs": 2}),
    "chat_stop": ("chat/completions", {"messages": COUNT, "stop": ["4"], "max_tokens": 50}),
    "completions": ("completions", {"prompt": "<s><|user|>3*67<|assistant|>", "max_tokens": 8}),
    "completions_several": ("completions", {"prompt": ["3*67", "2*2"], "max_tokens": 3}),
    "completions_logprobs": ("completions", {"prompt": "3*67", "max_tokens": 3, "logprobs": 2}),
    "responses": ("responses", {"input": "3*67"}),
    "responses_cut": ("responses", {"input": [{"role": "user", "content": "hello"}], "max_output_tokens": 5}),
    "messages": ("messages", {"messages": USER, "max_tokens": 64}),
    "messages_stop": ("messages", {"messages": COUNT, "max_tokens": 64, "stop_sequences": ["4"]}),
}
TOOLS = {
    "chat_tools": ("chat/completions", {"messages": OTHER, "tools": [CHAT_TOOL], "tool_choice": "required",
                                        "max_tokens": 60}),
    "responses_tools": ("responses", {"input": "hello", "tools": [{"type": "function", **FUNCTION}],
                                      "tool_choice": "required", "max_output_tokens": 60}),
    "messages_tools": ("messages", {"messages": OTHER, "max_tokens": 60, "tool_choice": {"type": "any"}, "tools": [
        {"name": "lookup", "description": "d", "input_schema": FUNCTION["parameters"]}]}),
}
THINKING = {
    "chat_thinking": ("chat/completions", {"messages": OTHER, "max_tokens": 12}),
    "responses_thinking": ("responses", {"input": "hello", "max_output_tokens": 12}),
    "messages_thinking": ("messages", {"messages": OTHER, "max_tokens": 12}),
}


def post(port, path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{path}", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def record(server, model, cases, *more):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = subprocess.Popen([server, "-m", model, "--alias", "demo", "--host", "127.0.0.1", "--port", str(port),
                               "--parallel", "2", "-c", "4096", "--jinja", *more], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.05)
        for name, (path, request) in cases.items():
            request = {"model": "demo", "temperature": 0, "seed": 1, **request}
            options = {"stream_options": {"include_usage": True}} if "completions" in path else {}
            stream = post(port, path, {**request, "stream": True, **options})
            answer = json.loads(post(port, path, request))
            recording = {"path": f"/v1/{path}", "request": request, "stream": stream, "answer": answer}
            target = pathlib.Path(__file__).with_name(f"{name}.json")
            target.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n")
    finally:
        engine.terminate()
        engine.wait()


if __name__ == "__main__":
    server, model, *templates = sys.argv[1:]
    record(server, model, PLAIN)
    if templates:
        record(server, model, TOOLS, "--chat-template-file", templates[0])
        record(server, model, THINKING, "--chat-template-file", templates[1])
