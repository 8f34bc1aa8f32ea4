"""Generators that report other log-probabilities than the policy has, or none."""

from dataclasses import replace

import torch

from rl_lightning.generation import NativeGenerator


class Odd(NativeGenerator):
    """Reports something else for the first token of every response."""

    samples_from_copy = True
    reported = 0.0

    def generate(self, *arguments, **options):
        said = super().generate(*arguments, **options)
        first = torch.zeros_like(said.response_mask)
        first[:, 0] = True
        return replace(said, logprobs=torch.where(first & said.response_mask, self.reported, said.logprobs))


class Nothing(Odd):
    """An engine that reports none."""

    reported = float("nan")


class Impossible(Odd):
    """An engine that calls a token impossible which it has drawn."""

    reported = float("-inf")


class Far(Odd):
    """π/μ is beyond every float."""

    reported = -1e4
