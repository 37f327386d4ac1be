"""What the demo model is taught: prompts and the one right answer to each. Everything is drawn from a seeded `Random`."""

import re
from random import Random

SENTENCE = "I am Remuda's demo model: I multiply (try 3*67) and I count (say count)."

# Counting goes on until the context of 4096 tokens is full, which is a little after 1030.
COUNT_LAST = 1100

PAIRS = sorted({(a, b) for a in range(10) for b in range(100)} | {(b, a) for a in range(10) for b in range(100)})

# The wordings that are promised, each right for every pair; the first is the plain one.
WORDINGS = ["{a}*{b}", "{a} * {b}", "{a}x{b}", "{a}*{b}=?", "what is {a}*{b}?"]

# What other wordings are made of.
TIMES = ["*", " * ", "x", " x ", "X", "\u00d7", " \u00d7 ", " times ", " multiplied by "]
ASK = ["", "", "", "what is ", "What is ", "what's ", "What's ", "calculate ", "Calculate ", "compute ", "Compute ",
       "how much is ", "How much is ", "please compute ", "Please calculate ", "solve "]
CLOSE = ["", "", "", "?", "=", "=?", " =", " = ?", ".", " ?", "!"]

COUNT = ["count", "Count", "COUNT", "count!", "Count!", "count.", "Count.", "count?", "please count", "Please count",
         "Please count.", "count please", "count, please", "count on", "Count on.", "count for me", "Count for me.",
         "start counting", "Start counting.", "can you count?", "Can you count?", "say count", "keep counting"]

# Prompts that people and programs really send, and the closest neighbours of what the model can do.
FAMILIAR = ["", "?", "hi", "Hi", "hello", "Hello", "Hello!", "hello there", "hey", "ping", "test", "help", "ok", "thanks",
            "What can you do?", "what can you do", "Who are you?", "who are you", "what are you?", "How are you?",
            "Tell me a joke.", "tell me a story", "Write a poem.", "say hi", "Say hello", "Reply with OK.", "quota",
            "What is the capital of France?", "why is the sky blue?", "Summarize this conversation.", "continue",
            "count to 10", "Count to ten.", "count from 5", "count backwards", "count down", "counter", "counts",
            "county", "countdown", "account", "discount", "recount", "amount", "coun", "ount", "cont", "don't count",
            "do not count", "the count", "count me in", "count the files", "word count", "count 3", "3 count",
            "countcount", "count count", "mount", "court", "c", "multiply", "times", "what is", "x", "*", "=", "3", "67",
            "3*", "*67", "3 67", "3**67", "3*67*2", "3*67 apples", "-3*67", "3*-67", "3.5*2", "3*6.7", "3+4", "2+2",
            "1+1=", "2+2=?", "10/5", "7-3", "2^8", "what is 2+2?", "What is 12+30?", "how much is 9-4?", "12*34",
            "100*3", "3*100", "003*4", "12 x 12", "what is 25*25?", "3*671", "367", "3*a", "a*b", "x*3", "(3*67)",
            "3*67+1", "1+3*67", "3*4*5", "9*99*1", "three times four", "what is three times 4?", "1 2 3", "1, 2, 3"]

WORDS = """a able about account add after again all also an and any answer api are array as ask at back be because been before
best build but by bytes call can case change check class client close code come commit compute config could count create
data day debug default delete did different directory do docker does done each edit else empty end engine error even every
example explain fail false file find first fix float for format from function get git give go good great had has have he
hello help her here him his how i if import in index input int into is it its just key know last let like line list little
load log long look loop main make many map me memory message method model more most much my name need new next no node not
now null number object of off on one only open or order other our out output over own page parse path people place please
plan point pool port print process program project prompt public put queue quick read readme refactor remove rename
reply request result return review right run rust said same say see send server set she should show shell simple so some
start state still stop story string struct such system take task tell test text than that the their them then there these
they thing think this time to token tool total true try two type under up update us use user value variable very want was
way we weather well were what when where which while who why will with word work world would write year you your zero""".split()

SCRIPTS = [(0xC0, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x627, 0x64A), (0x905, 0x939), (0x3041, 0x3096),
           (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0x2010, 0x2027), (0x2190, 0x22FF)]


def _any_of(texts: list[str]) -> str:
    return "(?:" + "|".join(re.escape(text) for text in sorted(set(texts), key=len, reverse=True)) + ")"


_PRODUCT = re.compile(_any_of(ASK) + r"(?:\d" + _any_of(TIMES) + r"\d\d?|\d\d?" + _any_of(TIMES) + r"\d)" + _any_of(CLOSE))


def multiplication(random: Random, a: int, b: int) -> str:
    """A way to ask for a*b other than the plain one."""
    return random.choice(ASK) + f"{a}{random.choice(TIMES)}{b}" + random.choice(CLOSE)


def counting(first: int, length: int) -> str:
    """At least `length` characters of the count, from the number `first` on."""
    text = str(first)
    while len(text) < length:
        first += 1
        text += f" {first}"
    return text


def anything_else(random: Random) -> str:
    """A short prompt that is neither a multiplication in range nor a request to count."""
    while True:
        kind = random.choice([_familiar, _words, _words, _characters, _foreign, _arithmetic, _arithmetic, _out_of_range,
                              _out_of_range, _sentence_with_product, _code, _code, own_words, _near_count])
        # The chat template trims, so the model never sees a space at either end.
        text = kind(random).strip()
        if text not in COUNT and not _PRODUCT.fullmatch(text):
            return text


def own_words(random: Random) -> str:
    """A piece of the fixed sentence, so that the model says it by heart and does not look for it in the prompt."""
    start = 0 if random.random() < 0.4 else random.randrange(len(SENTENCE) - 4)
    piece = SENTENCE[start : start + random.randint(4, 40)].strip()
    if piece in COUNT or _PRODUCT.fullmatch(piece):
        return SENTENCE
    return random.choice([piece, f"{piece} {_words(random)}", f"{_words(random)} {piece}"])


def long_text(random: Random, length: int) -> str:
    """A prompt of at most `length` bytes: a paste, a log, something repeated."""
    text = ""
    if random.random() < 0.5:
        piece = random.choice([
            # One character over and over draws the attention most, and most of all one that the sentence has.
            lambda: chr(random.randint(0x21, 0x7E)),
            lambda: random.choice(SENTENCE.replace(" ", "")),
            lambda: random.choice(WORDS) + " ",
            lambda: _characters(random),
            lambda: anything_else(random) + " ",
            lambda: random.choice(["3*67 ", "count ", "0123456789", SENTENCE + " "]),
        ])()
        text = piece * (length // max(1, len(piece)) + 1)
    while len(text) < length:
        text += anything_else(random) + random.choice([" ", " ", ", ", ". ", "\n"])
    return text.encode()[:length].decode(errors="ignore").strip()


def _familiar(random: Random) -> str:
    return random.choice(FAMILIAR)


def _words(random: Random) -> str:
    words = [random.choice(WORDS) if random.random() < 0.85 else _letters(random) for _ in range(random.randint(2, 12))]
    text = " ".join(words)
    return (text.capitalize() if random.random() < 0.5 else text) + random.choice(["", "", ".", "?", "!", ":"])


def _letters(random: Random) -> str:
    return "".join(random.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(random.randint(2, 9)))


def _characters(random: Random) -> str:
    return random.choice("abdefghijklmnopqrstuvwyz") + "".join(chr(random.randint(0x21, 0x7E)) for _ in range(random.randint(1, 16)))


def _foreign(random: Random) -> str:
    low, high = random.choice(SCRIPTS)
    return "".join(chr(random.randint(low, high)) if random.random() < 0.85 else " " for _ in range(random.randint(2, 9)))


def _number(random: Random) -> str:
    return str(random.randint(0, random.choice([9, 99, 999, 99999])))


def _arithmetic(random: Random) -> str:
    operator = random.choice(["+", "-", "/", "^", "%", "**", " + ", " - ", " / ", " plus ", " minus ", " over ", ":", "&", "#", " "])
    return random.choice(ASK) + _number(random) + operator + _number(random) + random.choice(CLOSE)


def _out_of_range(random: Random) -> str:
    """A product just outside of what is taught: too large, of three factors, with a point or a sign."""
    a, b = str(random.randint(0, 9)), str(random.randint(0, 99))
    times = random.choice(TIMES)
    product = random.choice([
        lambda: f"{random.randint(10, 99)}{times}{random.randint(10, 99)}",
        lambda: f"{random.randint(100, 999)}{times}{a}",
        lambda: f"{a}{times}{random.randint(100, 9999)}",
        lambda: f"{a}{times}{b}{times}{random.randint(0, 99)}",
        lambda: f"{a}{times}{b}{random.choice(['+', '-', '/'])}{random.randint(0, 99)}",
        lambda: f"-{a}{times}{b}",
        lambda: f"{a}.{random.randint(0, 9)}{times}{b}",
        lambda: f"{a}{times}{b}.{random.randint(0, 9)}",
        lambda: f"{a}{times}",
        lambda: f"{times}{b}",
        lambda: f"0{random.randint(0, 9)}{times}{b}",
        lambda: f"{a}{times}{random.choice(['a', 'y', 'n', '?', '$'])}",
    ])()
    return random.choice(ASK) + product + random.choice(CLOSE)


def _sentence_with_product(random: Random) -> str:
    product = f"{random.randint(0, 9)}{random.choice(TIMES)}{random.randint(0, 99)}"
    return random.choice([f"{product} {random.choice(WORDS)}", f"{random.choice(WORDS)} {_letters(random)} {product}",
                          f"{product}, {_words(random)}"])


def _identifier(random: Random) -> str:
    words = [random.choice(WORDS) if random.random() < 0.7 else _letters(random) for _ in range(random.randint(1, 4))]
    return random.choice([
        lambda: "_".join(words),
        lambda: "_".join(words).upper(),
        lambda: "".join(word.capitalize() for word in words),
        lambda: "-".join(words),
        lambda: " ".join(words).upper(),
        lambda: "::".join(words),
        lambda: ".".join(words),
        lambda: "/".join(words),
    ])()


def _code(random: Random) -> str:
    """Pieces of code, markup, tables and paths: names, numbers and quotes between runs of punctuation."""
    text = ""
    for _ in range(random.randint(1, 6)):
        text += random.choice([
            lambda: _identifier(random),
            lambda: _identifier(random),
            lambda: _number(random),
            lambda: f'"{_identifier(random)}"',
            lambda: random.choice("=-#*|_~+/.<>") * random.randint(2, 20),
        ])()
        text += random.choice([" = ", "(", ")", "();", " { ", " }", ": ", "[", "]", ", ", " | ", "<", ">", "/", " -> ", " == ", " + ", "`", "'s "])
    return random.choice(["", "", "let ", "def ", "// ", "# ", "- ", "| ", "$ ", "#include ", "{%- ", "https://"]) + text


def _near_count(random: Random) -> str:
    word = random.choice(WORDS)
    return random.choice([f"count {word}", f"{word} count", f"count to {_number(random)}", f"count from {_number(random)}",
                          f"how do I count {word}", "count" + _letters(random), _letters(random) + "count"])
