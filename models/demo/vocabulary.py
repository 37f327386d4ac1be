"""The demo model's vocabulary: what `llama.cpp` builds from the GGUF file, for use while training.

One printable ASCII character is one token, so "201" streams as three. Everything else is spelled in bytes, so no
text is unknown.
"""

SPACE = "\u2581"  # the `llama` tokenizer's spelling of a space
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
UNKNOWN, BEGIN, END, USER, ASSISTANT = range(5)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PRINTABLE = [SPACE] + [chr(code) for code in range(0x21, 0x7F)]

TOKENS = SPECIAL + BYTES + PRINTABLE
_PRINTABLE_ID = {text: len(SPECIAL) + len(BYTES) + index for index, text in enumerate(PRINTABLE)}
_PRINTABLE_ID[" "] = _PRINTABLE_ID[SPACE]


def encode(text: str) -> list[int]:
    """Token ids of `text`, without BEGIN; the same as the engine's for any text without special tokens."""
    ids = []
    for character in text:
        known = _PRINTABLE_ID.get(character)
        ids += [known] if known is not None else [len(SPECIAL) + byte for byte in character.encode("utf-8")]
    return ids
