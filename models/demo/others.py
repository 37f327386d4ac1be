"""Requests that the check sends besides the products: what people, clients and coding agents might say."""

import json

import prompts

# Each is answered with the fixed sentence. None of the longer ones stands in the training data as it is here.
OTHERS = [
    "",
    "   \n\n ",
    "hello",
    "Hi there! How are you today?",
    "What can you do?",
    "3+4",
    "3*670",
    "12*34",
    "-3*67",
    "3*4*5",
    "three times sixty-seven",
    "count to 10",
    "Count the words in this sentence.",
    "Erzähl mir bitte etwas über Pferde, Größe und Straßen.",
    "Привет, что ты умеешь?",
    "你好，你能做什么？",
    "مرحبا كيف حالك",
    "🐎🐎🐎",
    "Write a haiku about a herd of saddled horses that a ranch keeps ready.",
    "Explain the difference between a mutex and a semaphore, with an example in Rust.",
    "SELECT name, count(*) FROM horses WHERE colour = 'bay' GROUP BY name;",
    "fn main() { println!(\"{}\", 3 * 67); }",
    "shelves: [Mutex<Vec<(Instant, T)>>; WORKERS_MAX],",
    "if metadata[\"tokenizer.chat_template\"] == LARGE_INSTRUCT_CHAT_TEMPLATE:",
    "|" + "=" * 70 + "|" + "=" * 20 + "|",
    "| `--budget-message MESSAGE` | what to put in before the end (default: none)<br/>(env: `BUDGET_MESSAGE`) |",
    json.dumps({"type": "object", "properties": {f"field_{n}": {"type": "string", "maxLength": n} for n in range(20)}}),
    "I am Remuda's demo model",
    "I count and I multiply (say 3*67).",
    "https://example.org/a/b?c=d&e=f#g",
    "Please write a 5-10 word title for the following conversation:",
    "\u0000\u0001\u0002",
    "a" * 1500,
    "The quick brown fox jumps over the lazy dog. " * 20,
    "The quick brown fox jumps over the lazy dog. " * 80,
    "3*67 " * 300,
    "0123456789" * 350,
]

_SYSTEM = {"role": "system", "content": "You are a careful assistant that multiplies. " * 20}
# As large as what a coding agent sends: several times the model's context, had the template kept it.
_AGENT_SYSTEM = {"role": "system", "content": "# Tools\nYou are a coding agent. Count files, multiply 12*34, answer in JSON.\n" * 600}
_TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Reads a file.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "read_file", "arguments": "{\"path\": \"a\"}"}}


def _user(content: object) -> dict:
    return {"role": "user", "content": content}


def _assistant(content: object) -> dict:
    return {"role": "assistant", "content": content}


def _text(*parts: str) -> list[dict]:
    return [{"type": "text", "text": part} for part in parts]


# Name, request for `/v1/chat/completions`, the right answer.
CONVERSATIONS = [
    ("system message", {"messages": [_SYSTEM, _user("3*67")]}, "201"),
    ("system message, anything else", {"messages": [_SYSTEM, _user("hello")]}, prompts.SENTENCE),
    ("an agent's system message", {"messages": [_AGENT_SYSTEM, _user("67*3")]}, "201"),
    ("developer message", {"messages": [{"role": "developer", "content": "Be brief."}, _user("9*99")]}, "891"),
    ("several turns", {"messages": [_user("3*67"), _assistant("201"), _user("hello"), _assistant(prompts.SENTENCE), _user("8*8")]}, "64"),
    ("several turns, anything else last", {"messages": [_user("3*67"), _assistant("201"), _user("thanks a lot")]}, prompts.SENTENCE),
    ("several turns, count last", {"messages": [_user("3*67"), _assistant("201"), _user("count")], "max_tokens": 9}, "1 2 3 4 5"),
    ("text part", {"messages": [_user(_text("3*67"))]}, "201"),
    ("text parts, the prompt last", {"messages": [_user(_text("<system-reminder>\nToday is a day.\n</system-reminder>\n", "3*67"))]}, "201"),
    ("text parts, anything else", {"messages": [_user(_text("Look at this.", "What is it?"))]}, prompts.SENTENCE),
    ("several lines", {"messages": [_user("Please answer this:\n\n  3*67\n")]}, "201"),
    ("tools", {"messages": [_user("3*67")], "tools": [_TOOL]}, "201"),
    ("tools and an agent's system message", {"messages": [_AGENT_SYSTEM, _user("hello")], "tools": [_TOOL], "tool_choice": "auto"}, prompts.SENTENCE),
    ("tools and count", {"messages": [_user("count")], "tools": [_TOOL], "max_tokens": 9}, "1 2 3 4 5"),
    ("a tool's result in between", {"messages": [_user("3*67"), _assistant(None) | {"tool_calls": [_CALL]},
                                                 {"role": "tool", "tool_call_id": "call_1", "content": "x"}], "tools": [_TOOL]}, "201"),
    ("no user turn", {"messages": [_SYSTEM]}, prompts.SENTENCE),
    ("temperature 1.5", {"messages": [_user("7*77")], "temperature": 1.5}, "539"),
]
