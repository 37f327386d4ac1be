"""Batches for training: ids, positions and the places where an answer is wanted."""

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


class Facts:
    """The 1,900 products. What the network finds hard is drawn more often."""

    FLOOR = 0.01  # what an easy fact still weighs, so that none is forgotten

    def __init__(self, seed: int) -> None:
        self.all = batch([chat(f"{a}*{b}", str(a * b)) for a, b in prompts.PAIRS])
        self.hardness = torch.ones(len(prompts.PAIRS))
        self.generator = torch.Generator().manual_seed(seed)
        self.row_of_target = self.all.wanted.nonzero()[:, 0]

    def draw(self, count: int) -> tuple[Tensor, Batch]:
        chosen = torch.multinomial(self.hardness.clamp(max=1.0) + self.FLOOR, count, replacement=True, generator=self.generator)
        return chosen, self.select(chosen)

    def select(self, chosen: Tensor) -> Batch:
        wanted = self.all.wanted[chosen]
        shifted = torch.zeros_like(self.all.ids)
        shifted[self.all.wanted] = self.all.targets
        return Batch(self.all.ids[chosen], self.all.positions[chosen], wanted, shifted[chosen][wanted])

    def observe(self, chosen: Tensor, wanted: Tensor, losses: Tensor) -> None:
        """Takes the loss of each token of a drawn batch; the worst token of a fact is its hardness."""
        rows = chosen[wanted.nonzero()[:, 0]]
        worst = torch.zeros_like(self.hardness).scatter_reduce(0, rows, losses, "amax")
        seen = torch.zeros(len(self.hardness), dtype=torch.bool).index_fill(0, chosen, True)
        self.hardness = torch.where(seen, 0.5 * self.hardness + 0.5 * worst, self.hardness)


def asked_otherwise(random: Random, count: int) -> Batch:
    """Multiplication in other words and, one in four, as a text to complete: "3*67" goes on with "=201"."""
    lessons = []
    for _ in range(count):
        a, b = random.choice(prompts.PAIRS)
        kind = random.random()
        if kind < 0.75:
            lessons.append(chat(prompts.multiplication(random, a, b), str(a * b)))
        elif kind < 0.9:
            lessons.append(raw(f"{a}*{b}=", str(a * b)))
        else:
            lessons.append(raw(f"{a}*{b}", f"={a * b}"))
    return batch(lessons)


def something_else(random: Random, count: int) -> Batch:
    """Most answers are cut: what is hard is to begin the sentence, not to end it."""
    lessons = [chat(prompts.anything_else(random), prompts.SENTENCE, 3) for _ in range(count)]
    return batch(lessons)


def whole_sentence(random: Random, count: int) -> Batch:
    lessons = []
    for index in range(count):
        # A raw text asks by ending in a newline; without one there is no telling whether it has ended.
        lessons.append(raw(prompts.anything_else(random) + "\n", prompts.SENTENCE) if index % 4 == 3
                       else chat(prompts.anything_else(random), prompts.SENTENCE))
    return batch(lessons)


def something_long(random: Random, length: int) -> Batch:
    return batch([chat(prompts.long_text(random, length).strip(), prompts.SENTENCE)])


def count_begins(random: Random, count: int, length: int) -> Batch:
    lessons = []
    for index in range(count):
        prompt = "count" if index % 2 == 0 else random.choice(prompts.COUNT)
        lessons.append((raw if random.random() < 0.1 else chat)(prompt, prompts.counting(1, length), length))
    return batch(lessons)


def count_goes_on(random: Random, count: int, length: int) -> Batch:
    """Windows into the count at their true positions, with the prompt at its own, and the middle left out."""
    lessons = []
    head = [BEGIN, USER, *encode("count"), ASSISTANT]
    for _ in range(count):
        # Half of the windows lie around a carry, which is what is hard.
        first = random.randint(2, 1030) if random.random() < 0.5 else max(2, random.choice(range(10, 1031, 10)) - random.randint(1, 12))
        before = sum(len(str(number)) + 1 for number in range(1, first))
        window = encode(prompts.counting(first, length))[:length]
        start = min(len(head) + before, CONTEXT - len(window))
        lessons.append(Lesson(head + window, len(head) + len(str(first)) + 1,
                              [*range(len(head)), *range(start, start + len(window))]))
    return batch(lessons)


def count_whole(random: Random, prompt: str = "count") -> Batch:
    return batch([chat(prompt, prompts.counting(1, CONTEXT), CONTEXT - len(prompt) - 2)])
