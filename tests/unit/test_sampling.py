"""Which token comes next: the best, or one drawn by seed, request and step."""

from collections import Counter

import pytest
import torch

from astra.sampling import Sampler

LOGITS = torch.tensor([0.0, 2.0, 1.0, 2.0, -1.0])
DRAWS = 4000
OFF = 0.03  # four standard deviations of a share of 4,000 draws


def test_greedy_takes_the_first_of_the_best() -> None:
    assert Sampler().choose(LOGITS, request=3, step=4) == 1


def test_draws_depend_on_seed_request_and_step_alone() -> None:
    sampler = Sampler(temperature=1.0, seed=1)
    drawn = {(request, step): sampler.choose(LOGITS, request, step) for request in range(8) for step in range(8)}
    again = {place: Sampler(temperature=1.0, seed=1).choose(LOGITS, *place) for place in reversed(drawn)}
    assert again == drawn
    assert len(set(drawn.values())) > 1
    assert drawn != {place: Sampler(temperature=1.0, seed=2).choose(LOGITS, *place) for place in drawn}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 3, 100])
def test_draws_follow_the_softmax_of_the_best(temperature: float, top_k: int | None) -> None:
    sampler = Sampler(temperature, top_k)
    counts = Counter(sampler.choose(LOGITS, 0, step) for step in range(DRAWS))
    kept = LOGITS if top_k != 3 else torch.tensor([-torch.inf, 2.0, 1.0, 2.0, -torch.inf])
    for token, share in enumerate(torch.softmax(kept / temperature, dim=0).tolist()):
        assert counts[token] / DRAWS == pytest.approx(share, abs=OFF)


def test_top_1_is_greedy_whatever_the_temperature() -> None:
    assert {Sampler(5.0, 1).choose(torch.tensor([0.0, 1.0, 0.5]), 0, step) for step in range(20)} == {1}
