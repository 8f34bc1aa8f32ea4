"""What passes between a run and its rewards: settings, samples, outcomes of single calls, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rl_lightning.errors import UserError
from rl_lightning.rewards.tally import Said
from rl_lightning.typed import Typed

if TYPE_CHECKING:
    #: What computes a reward.
    Function = str | Callable[..., object]
else:  # what YAML can say of it, for the command line
    Function = str


#: What fields of a `RewardSpec` hold that YAML would have checked.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "weight": (int, float),
    "arguments": Mapping,
    "batched": bool,
    "concurrency": (int, type(None)),
}


@dataclass
class RewardSpec:
    """One reward: a function or a reward model.

    Args:
        function: dotted path, such as ``rl_lightning.rewards.functions.answer_correct``; in Python also the function itself. ``own`` is
            the reward that belongs to the source of prompts; of rows with gold answers, whether a response gives them.
        weight: factor in the sum of rewards; 0 makes it a metric only.
        name: what its metric is called; the last part of the path, or ``reward_model``, if null.
        arguments: further keyword arguments of the function. A model takes ``label`` (by name or number, if it has several),
            ``batch_size`` and ``chat_template``.
        model: a sequence classifier: a directory in Hugging Face format or a name on the hub.
        batched: the function takes lists (``prompts``, ``responses``, ``answers``, ...) and returns a list, see
            :mod:`rl_lightning.rewards.functions`. A function with a parameter ``completions`` does so by TRL's rules anyway.
        concurrency: calls at a time, where a function waits for something: of an ``async def`` in one process (32 if null), of
            another function in as many processes of its own (it shares those of ``reward_limits.workers`` if null).
    """

    function: Function | None = None
    weight: float = 1.0
    name: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    batched: bool = False
    concurrency: int | None = None

    def __post_init__(self) -> None:
        """Refuse a reward with neither a function nor a model, or with both, and settings that a model does not have."""
        if (self.function is None) == (self.model is None):
            raise UserError(
                f"A reward is a function or a model, not {'neither' if self.model is None else 'both'}: give "
                "{function: DOTTED.PATH} or {model: DIRECTORY}"
            )
        if self.model is not None and (self.batched or self.concurrency is not None):
            raise UserError(
                f"reward model {self.model!r}: batched and concurrency are settings of functions, not of models"
            )
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} of a reward cannot be {getattr(self, name)!r}")
        if not (self.function is None or isinstance(self.function, str | BatchReward) or callable(self.function)):
            raise UserError(f"function of a reward cannot be {self.function!r}: give a function, or its dotted path")
        if self.concurrency is not None and self.concurrency < 1:
            raise UserError(f"concurrency of a reward must be at least 1, not {self.concurrency}")


@dataclass
class RewardLimits(metaclass=Typed):
    """How much time and memory reward functions may take, and how many samples may fail.

    Args:
        timeout_s: longest time for one reward of one sample, in seconds; a function that takes longer is killed. The import of
            its module and its `prepare` do not count.
        start_timeout_s: longest time in seconds for a worker to start and run `prepare`, and for the import of each module.
        workers: number of processes that compute rewards; one if null. An ``async def``, and a function with a `concurrency` of its
            own, run in further ones.
        max_failed_fraction: the run stops if more than this fraction of the samples, in [0, 1], gets no reward: in one
            call of at least 4 samples, or of all samples so far once there are 64.
        memory_limit_gb: address space of each worker in units of 2^30 bytes; a lower limit of the system (`ulimit -v`) holds
            too. Null for no limit: a function that uses a GPU reserves far more address space than memory.
    """

    timeout_s: float = 10.0
    start_timeout_s: float = 300.0
    workers: int | None = None
    max_failed_fraction: float = 0.5
    memory_limit_gb: float | None = 16.0


@dataclass(frozen=True)
class RewardSample:
    """One response, as reward functions see it.

    Args:
        prompt: the text of the prompt as the model saw it.
        response: the text that the model wrote.
        answer: the gold answer as the data hold it, None if there is none.
        metadata: of the example; picklable.
        messages: the prompt as chat messages, if a chat template rendered it; a reward model renders them by its own template.
        source: the prompt as the data hold it, a text or chat messages; `prompt` if None.
        prompt_ids, response_ids: tokens of both; those of the response as they were sampled, the stop token included.
        episode: what the environment gave the response, where there is one; then the response is the policy's last turn.
    """

    prompt: str
    response: str
    answer: object
    metadata: dict[str, object]
    messages: list[dict[str, str]] | None = None
    source: str | list[dict[str, object]] | None = None
    prompt_ids: Sequence[int] = ()
    response_ids: Sequence[int] = ()
    episode: Outcome | None = None


@dataclass(frozen=True)
class BatchReward(metaclass=Typed):
    """A reward that takes all samples at once, in the trainer's process, such as a reward model.

    An exception in it ends the run, for no single sample is at fault. It returns NaN for a sample that it cannot score, or an
    `Outcome` that says why.

    Args:
        name: what its metric is called.
        weight: factor in the sum of rewards; 0 makes it a metric only.
        function: takes the samples; returns one score a sample, in the same order.
        arguments: the settings that it was made with; part of the key under which its results are cached.
    """

    name: str
    weight: float
    function: Callable[[Sequence[RewardSample]], Sequence[float | Outcome]]
    arguments: Mapping[str, object] = field(default_factory=dict)


#: How a call of a reward function ended; see `Outcome`.
Kind = Literal["ok", "raised", "timeout", "died"]


@dataclass(frozen=True)
class Outcome:
    """How one call of a reward function went.

    Args:
        kind: ``ok``; ``raised``: an exception, or it returned neither a number nor a short text; ``timeout``: it was killed for
            taking too long; ``died``: the process ended during the call (a crash, ``os._exit``, killed for its memory).
        value: what the call returned; None unless it is ``ok``.
        error: the traceback, or one line about the timeout or death; None if it is ``ok``.
        said: what the call said through :mod:`rl_lightning.rewards.tally`.
    """

    kind: Kind
    value: object = None
    error: str | None = None
    said: Said = field(default_factory=Said)


@dataclass
class Scores:
    """Rewards of a list of samples, in the same order.

    Args:
        total: weighted sum of the rewards that apply; NaN where one with a weight other than 0 failed, or none applies.
        components: each reward by name, unweighted; NaN where it failed or does not apply.
        failures: number of calls that ``raised``, hit the ``timeout``, ``died`` with their process or returned ``nan`` (also:
            no number, infinite), and of samples to which no reward applies (``none``). Kinds that did not occur are absent. The
            events that reward functions counted (:mod:`rl_lightning.rewards.tally`), such as ``grader_timeout``, are added; those
            calls have a reward.
        judged: the first reward listed that applies, unweighted; NaN where it failed.
        inapplicable: reward name → number of samples to which it does not apply, where there are some.
        notes: for each sample, reward name → what it noted: parts and `tally.note`.
        measures: NAME/PART → (sum, number) of the parts that rewards have, and of what `tally.measure` was told.
    """

    total: list[float]
    components: dict[str, list[float]]
    failures: dict[str, int]
    judged: list[float] = field(default_factory=list)
    inapplicable: dict[str, int] = field(default_factory=dict)
    notes: list[dict[str, dict[str, object]]] = field(default_factory=list)
    measures: dict[str, tuple[float, int]] = field(default_factory=dict)

    def events(self) -> dict[str, int]:
        """Return the counts of failures, of events, and of samples to which a reward does not apply, by the names that are logged."""
        failures = {kind if "/" in kind else f"reward_failures/{kind}": count for kind, count in self.failures.items()}
        return failures | {f"reward_inapplicable/{name}": count for name, count in self.inapplicable.items()}
