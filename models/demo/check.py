"""Checks the demo model through a real `llama-server`: every product, the count, and what it says to anything else.

    python check.py --model remuda-demo.gguf [--engine PATH]

Needs only Python's own library. Exits with 1 when anything is not as promised.
"""

import argparse
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import prompts
from others import CONVERSATIONS, OTHERS

START_SECONDS = 60
ANSWER_SECONDS = 120
CONTEXT = 4096
COUNT_TOKENS_MIN = 3000
COUNT_RIGHT_MIN = 900


def main() -> int:
    arguments = argparse.ArgumentParser(description="Check Remuda's demo model through a real engine.")
    arguments.add_argument("--model", type=Path, default=Path(__file__).with_name("remuda-demo.gguf"))
    arguments.add_argument("--engine", type=Path, help="llama-server; else the one in Remuda's cache, else the one on PATH")
    options = arguments.parse_args()
    engine = options.engine or find_engine()
    if engine is None:
        print("no llama-server: give one with --engine PATH", file=sys.stderr)
        return 1
    print(f"checking {options.model} ({options.model.stat().st_size:,} bytes) with {engine}", flush=True)

    report = Report()
    for clients in (1, 4):
        with server(engine, options.model, slots=clients) as port:
            check_products(report, port, clients)
            if clients == 1:
                check_wordings(report, port)
                check_completions(report, port)
                check_count(report, port)
                check_others(report, port)
                check_other_ways_in(report, port)
    print("all as promised" if not report.failed else f"{len(report.failed)} not as promised: {', '.join(report.failed)}", flush=True)
    return 1 if report.failed else 0


@dataclass
class Report:
    failed: list[str] = field(default_factory=list)

    def line(self, name: str, right: bool, figure: str) -> None:
        print(f"{'ok  ' if right else 'FAIL'} {name}: {figure}", flush=True)
        if not right:
            self.failed.append(name)

    def cases(self, name: str, cases: list[tuple[str, str, str]], started: float) -> None:
        """`cases`: what was asked, what came, what is right."""
        wrong = [case for case in cases if case[1] != case[2]]
        seconds = time.monotonic() - started
        self.line(name, not wrong, f"{len(cases) - len(wrong)} of {len(cases)} right, {len(cases) / seconds:.0f} a second")
        for asked, came, right in wrong[:8]:
            print(f"       {asked[:90]!r} gave {came[:90]!r}, not {right[:90]!r}", flush=True)


def check_products(report: Report, port: int, clients: int) -> None:
    started = time.monotonic()
    pairs = prompts.PAIRS
    answers = ask_all(port, clients, [f"{a}*{b}" for a, b in pairs])
    cases = [(f"{a}*{b}", answer, str(a * b)) for (a, b), answer in zip(pairs, answers)]
    report.cases(f"products, {clients} client{'s' if clients > 1 else ''} at once", cases, started)


def check_wordings(report: Report, port: int) -> None:
    for wording in prompts.WORDINGS[1:]:
        started = time.monotonic()
        asked = [wording.format(a=a, b=b) for a, b in prompts.PAIRS]
        right = [str(a * b) for a, b in prompts.PAIRS]
        report.cases(f"products asked as {wording!r}", list(zip(asked, ask_all(port, 1, asked), right)), started)


def check_completions(report: Report, port: int) -> None:
    started = time.monotonic()
    cases = []
    for a, b in prompts.PAIRS:
        reply = post(port, "/v1/completions", {"prompt": f"{a}*{b}="})
        cases.append((f"{a}*{b}=", reply["choices"][0]["text"], str(a * b)))
    report.cases("products as a text to complete", cases, started)


def check_count(report: Report, port: int) -> None:
    started = time.monotonic()
    reply = post(port, "/v1/chat/completions", {"messages": [{"role": "user", "content": "count"}]})
    tokens = reply["usage"]["completion_tokens"]
    numbers = reply["choices"][0]["message"]["content"].split(" ")
    right = next((index for index, number in enumerate(numbers) if number != str(index + 1)), len(numbers) - 1)
    ended = reply["choices"][0]["finish_reason"] == "stop"
    report.line("count", tokens >= COUNT_TOKENS_MIN and right >= COUNT_RIGHT_MIN and not ended,
                f"{tokens} tokens, {'ended by itself' if ended else 'until the context was full'}, right to {right}, "
                f"{tokens / (time.monotonic() - started):.0f} tokens a second")


def check_others(report: Report, port: int) -> None:
    started = time.monotonic()
    asked = list(OTHERS)
    report.cases("anything else", [(text, answer, prompts.SENTENCE) for text, answer in zip(asked, ask_all(port, 1, asked))], started)


def check_other_ways_in(report: Report, port: int) -> None:
    started = time.monotonic()
    cases = []
    for name, body, right in CONVERSATIONS:
        cases.append((name, chat_text(post(port, "/v1/chat/completions", body)), right))
    message = {"model": "demo", "max_tokens": 100, "system": "Be brief. " * 200, **user([{"type": "text", "text": "3*67"}])}
    cases.append(("/v1/messages", post(port, "/v1/messages", message)["content"][0]["text"], "201"))
    reply = post(port, "/v1/responses", {"model": "demo", "input": "3*67"})
    cases.append(("/v1/responses", reply["output"][-1]["content"][0]["text"], "201"))
    for prompt, right in [("3*67", "=201"), ("67*3", "=201")]:
        cases.append((f"/v1/completions {prompt}", post(port, "/v1/completions", {"prompt": prompt})["choices"][0]["text"], right))
    again = [json.dumps(post(port, "/v1/chat/completions", user("count") | {"max_tokens": 500})["choices"]) for _ in range(2)]
    cases.append(("the same request twice", again[1], again[0]))
    report.cases("other ways in", cases, started)


def ask_all(port: int, clients: int, texts: list[str]) -> list[str]:
    def one(text: str) -> str:
        return chat_text(post(port, "/v1/chat/completions", user(text)))

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, texts))


def user(content: object) -> dict:
    return {"messages": [{"role": "user", "content": content}]}


def chat_text(reply: dict) -> str:
    return reply["choices"][0]["message"]["content"] if "choices" in reply else json.dumps(reply)


def post(port: int, path: str, body: dict) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@contextmanager
def server(engine: Path, model: Path, slots: int) -> Iterator[int]:
    """A llama-server on a free loopback port, ready, and gone afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(engine), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--parallel", str(slots),
               "--ctx-size", str(CONTEXT * slots), "--threads", "1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: healthy(port), process, log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen, log) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            sys.exit(f"the engine did not start:\n{log.read().decode(errors='replace')[-3000:]}")
        time.sleep(0.02)


def healthy(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def find_engine() -> Path | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remuda"
    cached = sorted(path for path in cache.rglob("llama-server") if path.is_file() and os.access(path, os.X_OK))
    found = shutil.which("llama-server")
    return cached[-1] if cached else Path(found) if found else None


if __name__ == "__main__":
    sys.exit(main())
