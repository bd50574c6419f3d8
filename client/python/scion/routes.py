"""A new route table of one sparse layer: balanced by a text's own tokens, near to what parents' tables say.

The rule is that of `moe-extract upcycle`: heavy tokens first, in an order that is random among those of like mass
(within a factor of two), each to the expert with the least mass so far; tokens without mass to the expert with the
fewest tokens. A token for which parents name experts stays with one of those as long as that keeps the balance, so
that experts which are copies go on with the tokens that they know.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Route:
    expert_of_token: np.ndarray  # [vocab_size] i32
    shares: list[float]  # [num_experts] of the text's token mass; of the vocabulary where the text has no mass
    kept: float | None  # share of the mass that stays with an expert that the parents name; None without parents


def balanced_route(
    mass: np.ndarray,
    num_experts: int,
    seed: int,
    stream: int,
    preference: np.ndarray | None = None,
    taken: np.ndarray | None = None,
) -> Route:
    """mass: [vocab_size] i64, how often each token comes. stream: which table of those that a seed gives.

    preference: [vocab_size, num_experts] how much each expert is preferred for a token; 0: it is no parent's choice.
    An expert takes a token by preference only up to an equal share of the mass (of the tokens, for those without
    mass). taken: [vocab_size, num_experts] bool, the experts that other rows of the table give a token already; every
    token has one left.
    """
    vocab_size = len(mass)
    random = np.random.Generator(np.random.PCG64([seed, stream]))
    jitter = 1024 + random.integers(1024, size=vocab_size)
    shuffled = random.permutation(vocab_size)
    order = shuffled[np.argsort(-(np.minimum(mass, 1 << 50) * jitter)[shuffled], kind="stable")]
    expert_of_token = np.zeros(vocab_size, np.int32)
    loads, tokens = np.zeros(num_experts, np.int64), np.zeros(num_experts, np.int64)
    equal_mass, equal_tokens = -(-int(mass.sum()) // num_experts), -(-vocab_size // num_experts)
    kept = 0
    ties = random.random((vocab_size, num_experts))
    for token in order:
        weight = int(mass[token])
        # What decides: mass (if the token has any), then tokens, then chance.
        by_load = np.lexsort((ties[token], tokens, loads)) if weight else np.lexsort((ties[token], tokens))
        if taken is not None:
            by_load = by_load[~taken[token][by_load]]
        expert = by_load[0]
        if preference is not None:
            fits = loads + weight <= equal_mass if weight else tokens < equal_tokens
            wanted = np.where(fits, preference[token], 0)[by_load]
            if wanted.max() > 0:
                expert = by_load[wanted.argmax()]  # the first of equals: of the least load
                kept += weight
        expert_of_token[token] = expert
        loads[expert] += weight
        tokens[expert] += 1
    shares = loads if loads.sum() else tokens
    return Route(
        expert_of_token,
        (shares / shares.sum()).tolist(),
        None if preference is None else kept / max(1, int(mass.sum())),
    )
