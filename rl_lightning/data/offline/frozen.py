"""Tables that frozen models make: a policy's responses, and a reference's log-probabilities. Made once, kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from tqdm.auto import tqdm

from rl_lightning.data.cache import Cache, environment_key, rewards_key, settings_key, tensors_key
from rl_lightning.data.encoded import EncodedPrompt
from rl_lightning.data.episodes import EpisodeSampler
from rl_lightning.data.offline.written_pairs import WrittenRows
from rl_lightning.data.reward_models import ModelReward
from rl_lightning.data.sampler import Sampler
from rl_lightning.data.sources.base import Split
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.learner import ReferenceLearner, SampledPolicy
from rl_lightning.measures import merged, packed, unpacked
from rl_lightning.models import ClassifierFiles, PolicyFiles
from rl_lightning.padding import stacked
from rl_lightning.stopping import Ends
from rl_lightning.strategies import data_parallel_rank, data_parallel_size, from_every_rank, whole_here
from rl_lightning.types import Rollout

log = logging.getLogger(__name__)

#: Responses that are sampled, scored and kept at a time, at least and at most, and the number of such chunks in between. Not
#: options: which responses share a forward pass must not depend on the number of ranks or on interruptions, so that the table
#: is always the same to the last bit.
_FEWEST_AT_A_TIME, _MOST_AT_A_TIME, _CHUNKS = 32, 512, 16

#: Options of `Sampling` that came later, as they were before.
_OFF = [("min_p", 0.0), ("max_turns", None), ("max_turn_tokens", None)]


@dataclass(frozen=True)
class FrozenSampling:
    """What a table of responses follows from.

    Args:
        split: of the prompts.
        prompts: all of the split.
        files: of the policy that is sampled.
        ends: what ends its responses.
        group_size: responses to each prompt, G.
        sampling: how.
    """

    split: Split
    prompts: Sequence[EncodedPrompt]
    files: PolicyFiles
    ends: Ends
    group_size: int
    sampling: Sampling


@dataclass(frozen=True)
class FrozenTables:
    """Makes tables with frozen models, all ranks together, and keeps them.

    Args:
        trainer: knows the ranks, the device and the precision.
        sampler: asks for responses and rewards.
        reward_models: those among the rewards.
        cache: where tables are kept.
        policy_files: of the policy that will be trained.
    """

    trainer: Trainer
    sampler: Sampler
    reward_models: Sequence[ModelReward]
    cache: Cache
    policy_files: PolicyFiles

    def responses(self, asked: FrozenSampling) -> Rollout:
        """Return G scored responses to every prompt, on the CPU, prompt by prompt; every rank gets all.

        Group ids are the numbers of the prompts. Rewards are as the reward functions gave them: callbacks act later, so that
        their settings do not make other responses.
        """
        if ClassifierFiles(asked.files.policy, asked.files.options).is_classifier:
            raise UserError(
                f"sampler {asked.files.policy!r} is a sequence classifier, which answers nothing: set data.sampler to the policy whose "
                "responses are to be scored"
            )
        check_same_tokens(self.policy_files, asked.files, "sampler")
        key = self._responses_key(asked)
        kept = self.cache.load("responses", key)
        if kept is None:
            rollout = self._gather(self._sample(asked, key))
            self.cache.save("responses", key, rollout.state_dict())
            return rollout
        return Rollout.from_state_dict(kept)

    def _responses_key(self, asked: FrozenSampling) -> str:
        """Return the hash of everything that the responses follow from."""
        rewarder = self.sampler.rewarder
        assert rewarder is not None
        caps = [prompt.example.max_new_tokens for prompt in asked.prompts]
        models = [[one.spec.model, ClassifierFiles(str(one.spec.model)).fingerprint] for one in self.reward_models]
        environment = self.sampler.episodes.environment if isinstance(self.sampler, EpisodeSampler) else None
        played = {} if environment is None else {"environment": environment_key(environment)}
        return settings_key(
            {
                "sampler": asked.files.fingerprint,
                "load": asdict(asked.files.options),
                "precision": str(self.trainer.precision),
                "generator": type(self.sampler.generator).__qualname__,
                # What is off, or not set, is left out: options that are new find the tables that were made without them.
                "sampling": dict(item for item in asdict(asked.sampling).items() if item not in _OFF),
                **played,
                **({"caps": caps} if any(caps) else {}),
                "ends": str(asked.ends),
                "prompts": [prompt.input_ids for prompt in asked.prompts],
                "seen_by_rewards": [[p.text, p.example.answer, p.example.metadata] for p in asked.prompts],
                "rewards": [*rewards_key(rewarder), *models, self.sampler.correct_threshold],
                "streams": self.sampler.streams(asked.split, 0, 1),
                "samples_per_prompt": asked.group_size,
            }
        )

    def _sample(self, asked: FrozenSampling, key: str) -> list[Rollout]:
        """Sample this rank's share of the prompts, in chunks, with a progress bar; chunks that are kept are not sampled again."""
        size = asked.group_size
        at_a_time = min(max(_FEWEST_AT_A_TIME, len(asked.prompts) * size // _CHUNKS), _MOST_AT_A_TIME)
        chunks = list(enumerate(torch.arange(len(asked.prompts)).split(max(1, at_a_time // size))))
        own = chunks[data_parallel_rank(self.trainer) :: data_parallel_size(self.trainer)]
        known = {number: self.cache.load_part("responses", key, number) for number, _ in own}
        kept = [part for part in known.values() if part is not None]
        parts = [Rollout.from_state_dict(part | {"metrics": unpacked(part["metrics"])}) for part in kept]
        if parts:
            log.info("%d of %d chunks of %s responses are kept from before", len(parts), len(own), asked.split)
        shown = self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
        total, done = sum(len(chunk) for _, chunk in own) * size, sum(map(len, parts))
        with (
            self.sampler.watch.agreed(),
            self.loaded(asked.files) as model,
            tqdm(
                total=total,
                initial=done,
                desc="Sampling",
                unit="response",
                leave=False,
                dynamic_ncols=True,
                disable=not shown,
            ) as bar,
        ):
            policy = SampledPolicy(
                model, asked.files, asked.ends, asked.files.policy, lambda: frozen_mode(self.trainer)
            )
            # Every rank takes part in this, also one that has nothing to sample.
            self.sampler.generator.update(model, asked.files, policy.version)
            for number, chunk in own:
                if known[number] is None:
                    part = self._chunk(asked, policy, chunk.tolist(), bar)
                    state = part.state_dict() | {"metrics": packed(part.metrics)}
                    self.cache.save_part("responses", key, number, state)
                    parts.append(part)
        return parts

    def _chunk(self, asked: FrozenSampling, policy: SampledPolicy, chunk: list[int], bar: tqdm[NoReturn]) -> Rollout:
        """Return the scored responses to some prompts, on the CPU."""
        before = bar.n

        def progress(done: int, _: int) -> None:
            self.sampler.watch.on_boundary(False)
            bar.update(before + done - bar.n)

        prompts = [asked.prompts[index] for index in chunk]
        rollout = self.sampler.respond(policy, asked.split, prompts, chunk, asked.group_size, asked.sampling, progress)
        return replace(rollout.to("cpu"), group_ids=rollout.prompt_index.cpu())

    def _gather(self, parts: Sequence[Rollout]) -> Rollout:
        """Return the rows of all ranks in the order of their prompts."""
        chunks = {int(part.prompt_index[0]): part for rank in from_every_rank(parts) for part in rank}
        ordered = [chunks[first] for first in sorted(chunks)]
        joined = stacked(ordered, self.policy_files.tokenizer.pad_token_id)
        index = torch.cat([chunk.prompt_index for chunk in ordered])
        # What it took to make the table is not known of one that was kept.
        whole = merged([chunk.metrics for chunk in ordered])
        metrics = {
            name: float(value)
            for name, value in whole.items()
            if name.startswith(("rollout/", "reward/", "reward_failures/", "reward_inapplicable/", "grading/"))
        }
        return replace(joined, group_ids=index, metrics=metrics)

    def reference_logprobs(
        self, module: ReferenceLearner, rows: Rollout | WrittenRows, passes: Sequence[Tensor]
    ) -> Tensor:
        """Return log π_ref of some responses in nats, on the CPU; every rank gets all: (B, R), 0 outside them, or of `WrittenRows` flat.

        Args:
            module: names the reference, and computes log-probabilities.
            rows: in any order.
            passes: the rows of each forward pass; every row is in one.
        """
        files = module.reference_files
        check_same_tokens(self.policy_files, files, "reference")
        key = settings_key(
            {
                "reference": files.fingerprint,
                "load": asdict(files.options),
                "precision": str(self.trainer.precision),
                "rows": _rows_key(rows),
                "temperature": rows.temperature,
            }
        )
        kept = self.cache.load("references", key)
        if kept is not None:
            found: Tensor = kept["ref_logprobs"]
            return found
        rank, ranks = data_parallel_rank(self.trainer), data_parallel_size(self.trainer)
        own: dict[int, Tensor] = {}
        with self.sampler.watch.agreed(), self.loaded(files) as model, frozen_mode(self.trainer):
            for number in range(rank, len(passes), ranks):
                self.sampler.watch.on_boundary(False)
                batch = rows.microbatch(passes[number]).to(self.trainer.strategy.root_device)
                own[number] = module.logprobs(batch, model).cpu()
        parts = {number: part for theirs in from_every_rank(own) for number, part in theirs.items()}
        whole = rows.joined(passes, parts) if isinstance(rows, WrittenRows) else _padded(rows, passes, parts)
        self.cache.save("references", key, {"ref_logprobs": whole})
        return whole

    @contextmanager
    def loaded(self, files: PolicyFiles) -> Iterator[nn.Module]:
        """Load a frozen policy onto the device, in the trainer's precision, and let go of it afterwards."""
        # Loading may draw random numbers; whether something came from the cache must not show in what follows.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model = whole_here(partial(files.load, trainable=False), self.trainer)
        try:
            yield model
        finally:
            # The caller may still hold the name: the weights are what matters. Quantised ones cannot go to the device `meta`.
            for weight in (*model.parameters(), *model.buffers()):
                weight.data = weight.data.new_empty(0)


def _rows_key(rows: Rollout | WrittenRows) -> str:
    """Return a hash of the tokens of some rows."""
    if isinstance(rows, WrittenRows):
        return rows.digest()
    return tensors_key([rows.input_ids, rows.attention_mask, rows.response_mask])


def _padded(rows: Rollout, passes: Sequence[Tensor], parts: Mapping[int, Tensor]) -> Tensor:
    """Return what passes gave each token, (B, R), 0 outside responses.

    Args:
        rows: all.
        passes: the rows of each pass, which has no columns that are padding in all of them.
        parts: number of a pass → (its rows, R') float.
    """
    whole = torch.zeros(rows.response_mask.shape, dtype=torch.promote_types(parts[0].dtype, torch.float32))
    for number, chosen in enumerate(passes):
        whole[chosen, : parts[number].shape[1]] = parts[number].to(whole.dtype)
    return whole


@contextmanager
def frozen_mode(trainer: Trainer) -> Iterator[None]:
    """Run frozen models inside this: no gradients, and the precision of the training step."""
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        yield


def check_same_tokens(own: PolicyFiles, files: PolicyFiles, role: str) -> None:
    """Refuse another policy whose token ids mean something else than those of the trained one's.

    Args:
        own: of the trained policy.
        files: of the other.
        role: what it is, for messages.

    Raises:
        UserError: naming both.
    """
    if files is own:
        return
    same = files.tokenizer.get_vocab() == own.tokenizer.get_vocab()
    if not same or files.config.get_text_config().vocab_size != own.config.get_text_config().vocab_size:
        raise UserError(
            f"{role} {files.policy!r} and policy {own.policy!r} have different tokenizers or vocabularies: token ids of one mean "
            f"nothing to the other; choose a {role} of the policy's family"
        )
