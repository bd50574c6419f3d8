#!/usr/bin/env python3
"""Trains the demo model: a dense phase, in which all domains share every FFN, then the routed phase, whose experts start
as copies of the dense FFNs. The schedule follows the clock, so that it ends on time whatever else runs.

usage: train.py [--minutes 50] [--init CHECKPOINT] [--out checkpoint.pt]    where encode.py wrote data/

--init continues from a checkpoint, in the routed phase at once.
"""

import argparse
import dataclasses
import time

import numpy as np
import torch
import torch.nn.functional as F

from model import DOMAINS, Config, Model, dense_name, upcycle
from muon import MuonAdam

DENSE_SHARE = 0.45  # of the time
SEQUENCES = 16  # in a batch: as many of each domain
WARM_UP_STEPS = 30
DECAY_FROM = 0.2  # of the time; linear, to a hundredth
MUON_RATE, ADAM_RATE = 0.02, 2.5e-3


class Data:

    def __init__(self, split, context_tokens):
        self.tokens = [np.fromfile(f"data/{domain}.{split}.bin", np.uint16) for domain in DOMAINS]
        self.context_tokens = context_tokens

    def batch(self, random):
        """ids [SEQUENCES, context_tokens + 1] and the domain of each."""
        sequences = []
        for number in range(SEQUENCES):
            tokens = self.tokens[number % len(DOMAINS)]
            begin = random.randint(0, len(tokens) - self.context_tokens - 1)
            sequences.append(tokens[begin:begin + self.context_tokens + 1])
        return torch.from_numpy(np.stack(sequences).astype(np.int64)), torch.arange(SEQUENCES) % len(DOMAINS)


def loss_of(model, ids, domains):
    """[sequences, tokens]"""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids[:, :-1], domains)
    return F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")


@torch.no_grad()
def held_out_loss(model, data, batches):
    """Per domain, always of the same tokens."""
    random = np.random.RandomState(5)
    losses = torch.stack([loss_of(model, *data.batch(random)).mean(1) for _ in range(batches)]).mean(0)
    return {domain: round(losses[number::len(DOMAINS)].mean().item(), 3) for number, domain in enumerate(DOMAINS)}


def optimiser_of(model):
    return MuonAdam(list(model.named_parameters()), MUON_RATE, ADAM_RATE)


def into_routed_phase(dense, dense_optimiser):
    model = upcycle(dense)
    optimiser = optimiser_of(model)
    parents = dict(dense.named_parameters())
    optimiser.inherit(dense_optimiser, [(parameter, parents.get(name, parents.get(dense_name(name))))
                                        for name, parameter in model.named_parameters()])
    return model, optimiser


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--init")
    parser.add_argument("--out", default="checkpoint.pt")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)

    config = Config()
    model = Model(config, is_sparse=bool(arguments.init))
    if arguments.init:
        model.load_state_dict(torch.load(arguments.init)["weights"])
    optimiser = optimiser_of(model)
    train, val = Data("train", config.context_tokens), Data("val", config.context_tokens)
    random = np.random.RandomState(12 if arguments.init else 11)
    is_dense, began, step, next_report = not arguments.init, time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - began) / (arguments.minutes * 60)) < 1:
        if is_dense and progress >= DENSE_SHARE:
            model, optimiser = into_routed_phase(model, optimiser)
            is_dense = False
        loss = loss_of(model, *train.batch(random)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step(min(1, (step + 1) / WARM_UP_STEPS) * max(0.01, min(1, (1 - progress) / (1 - DECAY_FROM))))
        optimiser.zero_grad()
        step += 1
        if progress >= next_report:
            next_report += 0.05
            tokens = step * SEQUENCES * config.context_tokens
            print(f"{progress:4.0%} step {step}, {tokens / 1e6:.2f} M tokens, loss {loss.item():.3f}, "
                  f"held out {held_out_loss(model, val, 2)}", flush=True)
    torch.save({"weights": model.state_dict(), "config": dataclasses.asdict(config)}, arguments.out)
    print(f"step {step}, held out {held_out_loss(model, val, 8)}")


if __name__ == "__main__":
    main()
