"""Batches for training: ids, positions and the places where an answer is wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

import prompts
from network import CONTEXT
from vocabulary import ASSISTANT, BEGIN, END, USER, encode


@dataclass
class Lesson:
    """One sequence. The loss counts the tokens from `answer_at` on."""

    ids: list[int]
    answer_at: int
    positions: list[int] | None = None


@dataclass
class Batch:
    ids: Tensor
    positions: Tensor
    wanted: Tensor
    targets: Tensor


def chat(prompt: str, answer: str, answer_max: int | None = None) -> Lesson:
    """A question as the chat template writes it. `answer_max` cuts the answer to save time."""
    head = [BEGIN, USER, *encode(prompt), ASSISTANT]
    return Lesson(head + [*encode(answer), END][:answer_max], len(head))


def raw(prompt: str, answer: str, answer_max: int | None = None) -> Lesson:
    """A text without the template, as `/v1/completions` sends it: the model completes it."""
    head = [BEGIN, *encode(prompt)]
    return Lesson(head + [*encode(answer), END][:answer_max], len(head))


def batch(lessons: list[Lesson]) -> Batch:
    """Pads on the right: attention is causal, so what follows a sequence cannot reach it."""
    length = max(len(lesson.ids) for lesson in lessons) - 1
    ids = torch.full((len(lessons), length), END)
    targets = torch.full((len(lessons), length), END)
    positions = torch.arange(length).repeat(len(lessons), 1)
    wanted = torch.zeros((len(lessons), length), dtype=torch.bool)
    for row, lesson in enumerate(lessons):
        used = len(lesson.ids) - 1
        ids[row, :used] = torch.tensor(lesson.ids[:-1])
        targets[row, :used] = torch.tensor(lesson.ids[1:])
        wanted[row, lesson.answer_at - 1 : used] = True
        if lesson.positions is not None:
            positions[row, :used] = torch.tensor(lesson.positions[:-1])
    return Batch(ids, positions, wanted, targets[wanted])


def in_parts(lessons: list[Lesson], parts: int) -> list[Batch]:
    """Batches of sequences of like length: less padding to compute."""
    ordered = sorted(lessons, key=lambda lesson: len(lesson.ids))
    size = -(-len(ordered) // parts)
    return [batch(ordered[start : start + size]) for start in range(0, len(ordered), size)]


class Facts:
    """The 1,900 products, asked in one way. What the network finds hard is drawn more often."""

    FLOOR = 0.01  # what an easy fact still weighs, so that none is forgotten

    def __init__(self, seed: int, wording: str, ask: Callable[[str, str], Lesson]) -> None:
        self.wording = wording
        self.all = batch([ask(wording.format(a=a, b=b), str(a * b)) for a, b in prompts.PAIRS])
        self.hardness = torch.ones(len(prompts.PAIRS))
        self.generator = torch.Generator().manual_seed(seed)
        self.targets = torch.zeros_like(self.all.ids)
        self.targets[self.all.wanted] = self.all.targets

    def draw(self, count: int) -> tuple[Tensor, Batch]:
        """The facts that were drawn, and their batch."""
        weights = self.hardness.clamp(max=1.0) + self.FLOOR
        facts = torch.multinomial(weights, count, replacement=True, generator=self.generator)
        wanted = self.all.wanted[facts]
        return facts, Batch(self.all.ids[facts], self.all.positions[facts], wanted, self.targets[facts][wanted])

    def observe(self, facts: Tensor, wanted: Tensor, losses: Tensor) -> None:
        """Takes the loss of each token of a drawn batch; a fact is as hard as its worst token."""
        fact_of_token = facts[wanted.nonzero()[:, 0]]
        worst = torch.zeros_like(self.hardness).scatter_reduce(0, fact_of_token, losses, "amax")
        seen = torch.zeros(len(self.hardness), dtype=torch.bool).index_fill(0, facts, True)
        self.hardness = torch.where(seen, 0.5 * self.hardness + 0.5 * worst, self.hardness)

    def right(self, logits: Tensor) -> int:
        """How many products the logits for the batch of all facts have right."""
        right = torch.ones(len(prompts.PAIRS), dtype=torch.bool)
        right[self.all.wanted.nonzero()[:, 0][logits.argmax(-1) != self.all.targets]] = False
        return int(right.sum())


def asked_otherwise(random: Random, count: int) -> list[Batch]:
    """Multiplication in any words and, one in five, as a text to complete: "3*67" goes on with "=201"."""
    lessons = []
    for _ in range(count):
        a, b = random.choice(prompts.PAIRS)
        lessons.append(raw(f"{a}*{b}", f"={a * b}") if random.random() < 0.2
                       else chat(prompts.multiplication(random, a, b), str(a * b)))
    return in_parts(lessons, 3)


def something_else(random: Random, count: int) -> list[Batch]:
    """Short prompts, and only the start of the answer: what is hard is to begin the sentence, not to end it."""
    return in_parts([chat(prompts.anything_else(random), prompts.SENTENCE, 3) for _ in range(count)], 4)


def whole_sentence(random: Random, count: int) -> list[Batch]:
    """The sentence to its end, after what bends it most: its own words, and prompts of some length."""
    lessons = []
    for _ in range(count):
        prompt = random.choice([
            lambda: prompts.anything_else(random),
            lambda: prompts.anything_else(random),
            lambda: prompts.own_words(random),
            lambda: prompts.long_text(random, random.randint(20, 200)),
            lambda: prompts.long_text(random, random.randint(20, 200)),
        ])()
        # A raw text asks by ending in a newline; without one there is no telling whether it has ended.
        lessons.append(chat(prompt, prompts.SENTENCE) if random.random() < 0.9 else raw(prompt + "\n", prompts.SENTENCE))
    return in_parts(lessons, 2)


def something_long(random: Random, length: int) -> Batch:
    return batch([chat(prompts.long_text(random, length), prompts.SENTENCE)])


def count_begins(random: Random, count: int, length: int) -> Batch:
    lessons = []
    for _ in range(count):
        ask = raw if random.random() < 0.1 else chat
        lessons.append(ask(count_prompt(random), prompts.counting(1, length), length))
    return batch(lessons)


def count_goes_on(random: Random, count: int, length: int) -> Batch:
    """Windows into the count at their true positions, with the prompt at its own, and the middle left out."""
    lessons = []
    for _ in range(count):
        # Half of the windows begin just before a carry, which is what is hard.
        first = random.randint(2, 1030) if random.random() < 0.5 else max(2, random.randrange(10, 1031, 10) - random.randint(1, 12))
        head = [BEGIN, USER, *encode(count_prompt(random)), ASSISTANT]
        window = encode(prompts.counting(first, length))[:length]
        before = sum(len(str(number)) + 1 for number in range(1, first))
        start = min(len(head) + before, CONTEXT - len(window))
        positions = [*range(len(head)), *range(start, start + len(window))]
        lessons.append(Lesson(head + window, len(head) + len(str(first)) + 1, positions))
    return batch(lessons)


def count_whole(prompt: str) -> Batch:
    return batch([chat(prompt, prompts.counting(1, CONTEXT), CONTEXT - len(prompt) - 2)])


def count_prompt(random: Random) -> str:
    return "count" if random.random() < 0.5 else random.choice(prompts.COUNT)
