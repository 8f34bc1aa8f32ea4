"""Best of n: what the best of n samples is worth, and how far taking it moves from the policy that was sampled."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def powers_of_two(samples: int) -> list[int]:
    """Return the powers of two up to a number of samples, and that number: what pass@k and best of n are measured at.

    Example:
        >>> powers_of_two(12)
        [1, 2, 4, 8, 12]
    """
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})


def best_of_n_mean(scores: Tensor, values: Tensor, n: int) -> Tensor:
    """Return the expected value of the response with the best score of n, without bias, from N ≥ n responses.

    It is the mean over all subsets of n of the N responses, of the value of the one with the highest score. Responses with equal
    scores are equally likely to be taken.

    Args:
        scores: (..., N) float; what the best is chosen by. No NaN: leave out what has no score.
        values: (..., N) float; what the chosen response is worth, such as the reward of a verifier.
        n: size of a subset, from 1 to N.

    Returns:
        (...) float64. At n = 1 the mean of `values`, at n = N the value where the score is highest.

    Raises:
        ValueError: for an n that is not from 1 to N.

    Source: Nakano et al. (WebGPT, arXiv 2112.09332), appendix I, without ties.

    Example:
        >>> best_of_n_mean(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.0]), 2)
        tensor(0.3333, dtype=torch.float64)
    """
    size = scores.shape[-1]
    if not 1 <= n <= size:
        raise ValueError(f"n must be from 1 to the number of responses, {size}, not {n}")
    ordered, order = scores.sort(-1)
    # The best of a subset is among the i lowest scores with probability C(i, n) / C(N, n); each factor below is that of i over i + 1.
    #   scores     2    2    5    7        N = 4, n = 2
    #   below      0   1/6  1/2   1        C(i, 2) / 6 at the upper edge of each
    #   blocks     2    2 |  5 |  7        a block of ties has the difference between its edges, in equal shares
    place = torch.arange(1, size + 1, dtype=torch.float64, device=scores.device)
    below = torch.cat([((place - n).clamp(min=0) / place)[1:], place.new_ones(1)]).flip(0).cumprod(0).flip(0)
    chances = (below - torch.cat([below.new_zeros(1), below[:-1]])).expand(ordered.shape)
    block = torch.zeros_like(order)
    block[..., 1:] = (ordered[..., 1:] != ordered[..., :-1]).cumsum(-1)
    none = torch.zeros(ordered.shape, dtype=torch.float64, device=scores.device)
    shares = none.scatter_add(-1, block, chances) / none.scatter_add(-1, block, torch.ones_like(chances)).clamp(min=1)
    return (shares.gather(-1, block) * values.gather(-1, order).double()).sum(-1)


def best_of_n_kl(n: int) -> float:
    """Return KL(best of n ‖ π) = log n − (n − 1)/n, where "best of n" samples n responses from π and takes the best.

    This is how far best-of-n sampling at inference, or rejection sampling that keeps one response of n, moves from π without
    training. It is exact if no two responses have the same reward, and an upper bound with ties.

    Args:
        n: at least 1.

    Returns:
        Nats per response.

    Raises:
        ValueError: for n below 1.

    Source: Gao et al. (arXiv 2210.10760), section 2; its figures go up to n = 60,000, which is 10 nats.

    Example:
        >>> round(best_of_n_kl(60_000), 3)
        10.002
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_kl_exact(scores: Tensor, n: int) -> Tensor:
    """Return KL(best of n ‖ π) of the policy that draws one of the given responses, each with the same probability.

    Equal scores are one outcome: the best of n is drawn among them as π draws. With many ties this is far below `best_of_n_kl`,
    which holds for scores that are all different. As an estimate for the policy that the responses were sampled from it needs
    many more than n of them: it cannot exceed log N.

    Args:
        scores: (N,) float.
        n: at least 1.

    Returns:
        Nats per response, a float64 scalar.

    Raises:
        ValueError: for n below 1.

    Example:
        >>> best_of_n_kl_exact(torch.tensor([0.0, 1.0]), 2)  # 3/4 log 3/2 + 1/4 log 1/2
        tensor(0.1308, dtype=torch.float64)
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    _, counts = scores.unique(return_counts=True)
    share = counts.double() / counts.sum()
    at_most = share.cumsum(0)
    at_most = at_most / at_most[-1]
    chance = at_most**n - torch.cat([at_most.new_zeros(1), at_most[:-1]]) ** n
    return torch.special.xlogy(chance, chance / share).sum()
