"""Trains Remuda's demo model on the CPU and writes it as a GGUF file.

    python train.py --out remuda-demo.gguf

One thread and fixed seeds: the same processor with the same packages gives the same file. There is no wall-clock limit,
which would make the result depend on how busy the machine is.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lessons
import prompts
from lessons import Batch, Facts
from network import CONTEXT, Network
from vocabulary import TOKENS
from write import write

SEED = 367
STEPS = 1300
WARM_UP = 50
REPORT_EVERY = 25
# The whole count is 4,096 tokens in one sequence, as dear as an ordinary step: it comes in the second half, now and then.
LONG_FROM = STEPS // 2
LONG_EVERY = 4


@dataclass
class Task:
    name: str
    batch: Batch
    weight: float


def main() -> None:
    arguments = argparse.ArgumentParser(description="Train Remuda's demo model.")
    arguments.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    options = arguments.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    network = Network(len(TOKENS))
    train(network)
    report_margin(network)
    write(network, options.out)
    print(f"wrote {options.out}: {options.out.stat().st_size:,} bytes, after {time.process_time() / 60:.1f} minutes of processor "
          "time", flush=True)


def train(network: Network) -> None:
    random, started = Random(SEED), time.monotonic()
    plain, *others = ways_to_ask()
    optimizers = make_optimizers(network)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate) for optimizer in optimizers]
    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of = {"products": learn_facts(network, plain, 160, 1.0)}
        for facts in others:
            loss_of["promised wordings"] = learn_facts(network, facts, 32, 0.2)
        for task in other_tasks(random, step):
            loss_of[task.name] = learn(network, task)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            scheduler.step()
        if (step + 1) % REPORT_EVERY == 0:
            report_progress(network, plain, step + 1, time.monotonic() - started, loss_of)


def ways_to_ask() -> list[Facts]:
    """All ways that are promised to be right for every product; the plain one first."""
    ways = [(wording, lessons.chat) for wording in prompts.WORDINGS] + [("{a}*{b}=", lessons.raw)]
    return [Facts(SEED + index, wording, ask) for index, (wording, ask) in enumerate(ways)]


def learning_rate(step: int) -> float:
    """Relative: up over the first steps, then down to nothing in a straight line."""
    return min(1.0, (step + 1) / WARM_UP) * (1 - step / STEPS)


def other_tasks(random: Random, step: int) -> list[Task]:
    tasks = [
        *in_shares("asked otherwise", lessons.asked_otherwise(random, 64), 0.5),
        *in_shares("anything else", lessons.something_else(random, 64), 0.5),
        *in_shares("sentence", lessons.whole_sentence(random, 10), 0.4),
        Task("count", lessons.count_goes_on(random, 6, 96), 0.3),
        Task("count begins", lessons.count_begins(random, 2, 40), 0.1),
    ]
    if step % 2:
        tasks.append(Task("long text", lessons.something_long(random, int(2 ** random.uniform(7, 11))), 0.3))
    if step >= LONG_FROM and step % LONG_EVERY == 0:
        tasks.append(Task("whole count", lessons.count_whole(lessons.count_prompt(random)), 0.5))
    if step >= LONG_FROM and step % (2 * LONG_EVERY) == 2:
        tasks.append(Task("very long text", lessons.something_long(random, random.randint(1024, CONTEXT - 200)), 0.3))
    return tasks


def in_shares(name: str, batches: list[Batch], weight: float) -> list[Task]:
    return [Task(name, batch, weight / len(batches)) for batch in batches]


def make_optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers: with it the products alone are learnt in 400 steps, not in thousands."""
    parameters = list(network.named_parameters())
    inner = [weight for name, weight in parameters if weight.dim() == 2 and name.startswith("blk")]
    outer = [weight for name, weight in parameters if weight.dim() != 2 or not name.startswith("blk")]
    return [
        torch.optim.Muon(inner, lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def token_losses(network: Network, batch: Batch) -> Tensor:
    return F.cross_entropy(network(batch.ids, batch.positions, batch.wanted), batch.targets, reduction="none")


def learn_facts(network: Network, facts: Facts, count: int, weight: float) -> float:
    drawn, batch = facts.draw(count)
    losses = token_losses(network, batch)
    facts.observe(drawn, batch.wanted, losses.detach())
    (weight * losses.mean()).backward()
    return losses.mean().item()


def learn(network: Network, task: Task) -> float:
    """Adds a task's gradient; returns its mean loss."""
    loss = token_losses(network, task.batch).mean()
    (task.weight * loss).backward()
    return loss.item()


@torch.no_grad()
def report_progress(network: Network, facts: Facts, steps: int, seconds: float, loss_of: dict[str, float]) -> None:
    right = facts.right(network(facts.all.ids, facts.all.positions, facts.all.wanted))
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in loss_of.items())
    print(f"training: step {steps} of {STEPS}, {seconds / 60:.1f} min gone, about "
          f"{seconds / steps * (STEPS - steps) / 60:.1f} min left; {right} of {len(prompts.PAIRS)} products right; "
          f"loss: {losses}", flush=True)


@torch.no_grad()
def report_margin(network: Network) -> None:
    """How sure the network is where it is least sure: what rounding to 16 bits must not overturn."""
    questions = [(f"products as {facts.wording}", facts.all) for facts in ways_to_ask()]
    questions.append(("count", lessons.count_whole("count")))
    for name, batch in questions:
        chances = network(batch.ids, batch.positions, batch.wanted).softmax(-1)
        least = chances.gather(1, batch.targets[:, None]).min()
        print(f"{name}: the right token has a probability of {least:.4f} where the network is least sure", flush=True)


if __name__ == "__main__":
    main()
