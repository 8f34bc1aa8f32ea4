"""Which reward knows the truth: one that training does not use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightning.pytorch import Callback

from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback


def find_verifier(who: str, named: str | None, weights: Mapping[str, float], callbacks: Iterable[Callback] = ()) -> str:
    """Return the name of the reward to verify by: the one that is named, or the only one that training does not use.

    Args:
        who: asks, for messages.
        named: a name, or None.
        weights: the rewards of the run, name → weight.
        callbacks: of the run; some of them train on rewards of weight 0.

    Raises:
        UserError: for a name that no reward has, one that is trained on, and where no name is given and not exactly one is left.
    """
    used = {name: f"has weight {weight:g}" for name, weight in weights.items() if weight}
    for callback in callbacks:
        if isinstance(callback, RolloutCallback):
            used |= dict.fromkeys(callback.trains_on, f"is a member of {type(callback).__name__}")
    listed = ", ".join(weights) or "none"
    if named is None:
        free = [name for name in weights if name not in used]
        if len(free) == 1:
            return free[0]
        do = "name one of them as `verifier`" if free else "list one that knows the truth at `weight: 0`"
        raise UserError(
            f"{who} needs a verifier that training does not use, and {len(free) or 'none'} of the rewards ({listed}) can be it: {do}"
        )
    if named not in weights:
        raise UserError(f"{who}: there is no reward {named!r}; there are {listed}")
    if named in used:
        raise UserError(
            f"{who}: {named!r} {used[named]}, so it is trained on, and cannot tell whether training has found a way around it: list "
            "what knows the truth at `weight: 0`, this one under another name if it does"
        )
    return named
