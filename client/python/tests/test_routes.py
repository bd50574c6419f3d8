"""Route tables are balanced by the text's own tokens, random, and near to the parents' where that costs no balance."""

import numpy as np
import pytest

from scion.routes import balanced_route

VOCAB = 1000


def zipf_mass() -> np.ndarray:
    """[VOCAB]: half of the vocabulary by Zipf's law, the other half never seen; in no order."""
    mass = np.zeros(VOCAB, np.int64)
    mass[np.random.default_rng(5).permutation(VOCAB)[: VOCAB // 2]] = 100000 // np.arange(1, VOCAB // 2 + 1)
    return mass


@pytest.mark.parametrize("experts", [1, 2, 3, 7])
def test_experts_differ_by_at_most_one_tokens_mass_and_one_token(experts: int) -> None:
    mass = zipf_mass()
    route = balanced_route(mass, experts, seed=1, stream=0)
    loads = np.bincount(route.expert_of_token, weights=mass, minlength=experts)
    # Greedy by falling mass: the heaviest was the least loaded before its last token.
    assert loads.max() - loads.min() <= mass.max()
    assert route.shares == pytest.approx((loads / mass.sum()).tolist()) and route.kept is None
    assert max(route.shares) < 1 / experts + mass.max() / mass.sum()
    tokens = np.bincount(route.expert_of_token, minlength=experts)
    assert tokens.max() - tokens.min() <= 1


def test_tokens_are_what_is_shared_without_a_text() -> None:
    route = balanced_route(np.zeros(VOCAB, np.int64), 4, seed=1, stream=0)
    assert route.shares == [0.25] * 4


def test_a_table_is_a_function_of_seed_and_stream() -> None:
    mass = zipf_mass()
    tables = [
        balanced_route(mass, 4, seed, stream).expert_of_token for seed, stream in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert (tables[0] == tables[1]).all()
    for other in tables[2:]:
        assert 0.1 < (tables[0] == other).mean() < 0.5  # a quarter by chance


def test_tokens_stay_with_their_parents_experts_where_the_balance_permits() -> None:
    mass = zipf_mass()
    parent = balanced_route(mass, 4, seed=9, stream=3).expert_of_token
    preference = np.eye(4, dtype=np.int32)[parent]
    route = balanced_route(mass, 4, 1, 0, preference)
    assert route.kept is not None and route.kept > 0.9  # the parent's table was balanced by the same text
    assert max(route.shares) - min(route.shares) < 0.01
    # A parent that sends all to one expert: an equal share stays.
    route = balanced_route(mass, 4, 1, 0, np.eye(4, dtype=np.int32)[np.zeros(VOCAB, np.int32)])
    assert route.kept == pytest.approx(0.25, abs=0.01) and max(route.shares) < 0.26


def test_no_row_repeats_an_expert_of_the_rows_before() -> None:
    mass, taken, rows = zipf_mass(), np.zeros((VOCAB, 4), bool), []
    for slot in range(3):
        route = balanced_route(mass, 4, 1, slot, None, taken)
        assert not taken[np.arange(VOCAB), route.expert_of_token].any()
        taken[np.arange(VOCAB), route.expert_of_token] = True
        assert max(route.shares) < 0.3
        rows.append(route.expert_of_token)
    assert (np.stack(rows).sum(0) <= 3 + 2 + 1).all()
