"""What votes say of pictures: a Bradley-Terry-Luce model on features, with its uncertainty.

Luce 1959, Individual Choice Behavior: of K pictures with scores s, and nothing at all with score tau, somebody chooses

    P(k) = exp(s_k) / Z,   P(none) = exp(tau) / Z,   Z = exp(tau) + sum_j exp(s_j),   s = w z

where z are the features of a picture. Of two pictures this is Bradley and Terry's model. The weights have the prior N(0, 1 / strength),
and their posterior is Laplace's: a normal distribution around the most probable weights, whose precision is the curvature there
(Bishop 2006, section 4.5). The prior's strength is the one under which the votes are most probable (section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Of the prior: precisions of the weights on features of mean square 1."""
OUTSIDE = 0.1
"""The prior's precision of tau."""
MOST_DIRECTIONS = 128
"""The features are looked at in their own main directions, at most so many."""
_STEPS, _SAMPLES = 30, 64


@dataclass(frozen=True, slots=True)
class Ballot:
    """A vote, as the model sees it."""

    features: Tensor
    """[K, D]."""
    chosen: tuple[int, ...]
    """Places of the best ones; empty where none is good."""


class Preference:
    """The most probable weights after some votes, and how sure they are.

    Args:
        ballots: at least one; all features of one length.
        groups: lengths of groups of features, one after the other; each of them counts alike before the first vote. Left out, one.
    """

    def __init__(self, ballots: Sequence[Ballot], groups: Sequence[int] = ()) -> None:
        every = torch.cat([ballot.features for ballot in ballots]).double()
        self.mean = every.mean(0)
        centred = every - self.mean
        parts = centred.split(list(groups) or [centred.shape[1]], dim=1)
        units = [part.square().sum(1).mean().sqrt().clamp_min(1e-12).expand(part.shape[1]) for part in parts]
        self.unit = torch.cat(units) * len(parts) ** 0.5
        _, values, directions = torch.linalg.svd(centred / self.unit, full_matrices=False)
        kept = values > values.max().clamp_min(1e-12) * 1e-6
        self.directions = directions[kept][:MOST_DIRECTIONS]
        data = _Data(ballots, self)
        fits: list[_Fit] = []
        for strength in reversed(STRENGTHS):
            fits.append(_fit(data, strength, fits[-1].weights if fits else None))
        best = max(fits, key=lambda fit: fit.evidence)
        self.strength, self.weights, self.covariance = best.strength, best.weights, best.covariance
        """Of the directions, and last tau."""

    def project(self, features: Tensor) -> Tensor:
        """Return the coordinates [..., R] of features [..., D], in their dtype; carries grad."""
        mean, unit, directions = (part.to(features) for part in (self.mean, self.unit, self.directions))
        return (features - mean) / unit @ directions.T

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores [B] of features [B, D] above nothing at all, s - tau, in nats; carries grad."""
        weights = self.weights.to(features)
        return self.project(features) @ weights[:-1] - weights[-1]

    def guess(self, ballot: Ballot) -> float:
        """Return how probable it was that somebody votes so; of several equally good ones, any of them."""
        choices = _choices(self.project(ballot.features.double()))
        chances = torch.softmax(choices @ self.weights, 0)
        return float(chances[list(ballot.chosen)].sum() if ballot.chosen else chances[-1])

    def guesses_right(self, ballot: Ballot) -> bool:
        """Whether the picture that was to be expected is the one that was chosen."""
        expected = int(torch.argmax(_choices(self.project(ballot.features.double())) @ self.weights))
        return expected in ballot.chosen if ballot.chosen else expected == len(ballot.features)

    def information(self, sets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return what a vote on each set of pictures would tell of the weights, in nats.

            H(E[p]) - E[H(p)]   over weights of the posterior

        Houlsby et al. 2011, Bayesian active learning for classification and preference learning (arXiv:1112.5745).

        Args:
            sets: features [S, K, D] of S sets of K pictures.
        """
        root = torch.linalg.cholesky(self.covariance)
        noise = torch.randn(len(self.weights), _SAMPLES, generator=generator, dtype=torch.float64)
        weights = self.weights[:, None] + root @ noise
        chances = torch.softmax(torch.stack([_choices(self.project(each.double())) for each in sets]) @ weights, 1)
        return _entropy(chances.mean(2)) - _entropy(chances).mean(1)


@dataclass(frozen=True, slots=True)
class _Fit:
    strength: float
    weights: Tensor
    covariance: Tensor
    evidence: float


class _Data:
    """Votes as one table: a row for each thing that could have been chosen."""

    def __init__(self, ballots: Sequence[Ballot], model: Preference) -> None:
        rows = [_choices(model.project(ballot.features.double())) for ballot in ballots]
        self.rows = torch.cat(rows)
        self.vote = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
        self.count = len(rows)
        self.wanted = torch.cat([_wanted(ballot) for ballot in ballots])

    def log_chances(self, weights: Tensor) -> Tensor:
        """Return the log-probability of each row within its vote."""
        logits = self.rows @ weights
        largest = torch.full((self.count,), -torch.inf, dtype=logits.dtype).scatter_reduce(0, self.vote, logits, "amax")
        total = torch.zeros(self.count, dtype=logits.dtype).index_add(0, self.vote, (logits - largest[self.vote]).exp())
        return logits - (largest + total.log())[self.vote]


def _choices(coordinates: Tensor) -> Tensor:
    """Return what can be chosen, [K + 1, R + 1]: the pictures, and last nothing at all, whose score is tau."""
    count, length = coordinates.shape
    found = coordinates.new_zeros(count + 1, length + 1)
    found[:count, :length] = coordinates
    found[count, length] = 1
    return found


def _wanted(ballot: Ballot) -> Tensor:
    """Return the shares [K + 1] of a vote: equal ones of what was chosen."""
    shares = torch.zeros(len(ballot.features) + 1, dtype=torch.float64)
    places = list(ballot.chosen) or [-1]
    shares[places] = 1 / len(places)
    return shares


def _fit(data: _Data, strength: float, start: Tensor | None) -> _Fit:
    """Return the most probable weights, by Newton's method with halved steps, and the Laplace approximation there."""
    prior = torch.full((data.rows.shape[1],), strength, dtype=torch.float64)
    prior[-1] = OUTSIDE
    weights = torch.zeros_like(prior) if start is None else start

    def loss(at: Tensor) -> Tensor:
        return 0.5 * (prior * at.square()).sum() - (data.wanted * data.log_chances(at)).sum()

    present = loss(weights)
    for _ in range(_STEPS):
        chances = data.log_chances(weights).exp()
        gradient = prior * weights + data.rows.T @ (chances - data.wanted)
        step = torch.linalg.solve(_curvature(data, chances, prior), gradient)
        scale = 1.0
        while scale > 1e-6 and (reached := loss(weights - scale * step)) > present:
            scale /= 2
        if scale <= 1e-6 or present - reached < 1e-4:
            break
        weights, present = weights - scale * step, reached
    curvature = _curvature(data, data.log_chances(weights).exp(), prior)
    evidence = -present + 0.5 * (prior.log().sum() - torch.logdet(curvature))
    return _Fit(strength, weights, torch.linalg.inv(curvature), float(evidence))


def _curvature(data: _Data, chances: Tensor, prior: Tensor) -> Tensor:
    """Return the second derivative of the loss: the spread of the rows within each vote, and the prior."""
    weighted = data.rows * chances[:, None]
    means = torch.zeros(data.count, data.rows.shape[1], dtype=torch.float64).index_add(0, data.vote, weighted)
    return data.rows.T @ weighted - means.T @ means + prior.diag()


def _entropy(chances: Tensor) -> Tensor:
    return torch.special.entr(chances).sum(1)
