"""Tables of responses that a frozen policy gives, and of what a frozen reference says of them: made once, kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rl_lightning.data.cache import digest, digest_tensors, rewards_key
from rl_lightning.data.sources.base import Split
from rl_lightning.errors import UserError
from rl_lightning.measures import merged, packed, unpacked
from rl_lightning.models import ClassifierFiles, PolicyFiles
from rl_lightning.strategies import data_parallel_rank, data_parallel_size, from_every_rank
from rl_lightning.types import Rollout

if TYPE_CHECKING:
    from rl_lightning.data.reward import RewardDataModule

log = logging.getLogger(__name__)

#: Responses that are sampled, scored and kept at a time, at least and at most, and the number of such chunks in between. Not
#: options: which responses share a forward pass must not depend on the number of ranks or on interruptions, so that the table
#: is always the same to the last bit.
_FEWEST_AT_A_TIME, _MOST_AT_A_TIME, _CHUNKS = 32, 512, 16


def sampled_table(data: RewardDataModule, split: Split) -> Rollout:
    """Return k scored responses of the sampler to every prompt of a split, on the CPU, prompt by prompt; every rank gets all.

    Group ids are the numbers of the prompts. Rewards are as the reward functions gave them: callbacks act later, so that
    their settings do not make other responses.
    """
    files = data.sampler_files
    if ClassifierFiles(files.policy, files.options).is_classifier:
        raise UserError(
            f"sampler {files.policy!r} is a sequence classifier, which answers nothing: set data.sampler to the policy whose "
            "responses are to be scored"
        )
    check_same_tokens(data, files, "sampler")
    key = _table_key(data, split)
    kept = data.cache.load("responses", key)
    if kept is None:
        rollout = _gather(data, _sample(data, split, key))
        data.cache.save("responses", key, rollout.state_dict())
        return rollout
    return Rollout.from_state_dict(kept)


def _table_key(data: RewardDataModule, split: Split) -> str:
    """Return the hash of everything that the table follows from."""
    assert data.rewarder is not None and data.trainer is not None
    prompts = data._encoded[split]
    models = [
        [reward.spec.model, ClassifierFiles(str(reward.spec.model)).fingerprint] for reward in data._reward_models
    ]
    return digest(
        {
            "sampler": data.sampler_files.fingerprint,
            "load": asdict(data.sampler_files.options),
            "precision": str(data.trainer.precision),
            "generator": type(data.generator).__qualname__,
            "sampling": asdict(data.sampling),
            "ends": str(data.ends(data.sampler_files, data.sampling)),
            "prompts": [prompt.input_ids for prompt in prompts],
            "seen_by_rewards": [[p.text, p.example.answer, p.example.metadata] for p in prompts],
            "rewards": [*rewards_key(data.rewarder), *models, data.correct_threshold],
            "streams": data.streams(split, 0, 1),
            "samples_per_prompt": data.samples_per_prompt,
        }
    )


def _sample(data: RewardDataModule, split: Split, key: str) -> list[Rollout]:
    """Sample this rank's share of the prompts, in chunks, with a progress bar; chunks that are kept are not sampled again."""
    assert data.trainer is not None
    samples, prompts = data.samples_per_prompt, data._encoded[split]
    at_a_time = min(max(_FEWEST_AT_A_TIME, len(prompts) * samples // _CHUNKS), _MOST_AT_A_TIME)
    chunks = list(enumerate(torch.arange(len(prompts)).split(max(1, at_a_time // samples))))
    own = chunks[data_parallel_rank(data.trainer) :: data_parallel_size(data.trainer)]
    known = {number: data.cache.load_part("responses", key, number) for number, _ in own}
    kept = [part for part in known.values() if part is not None]
    parts = [Rollout.from_state_dict(part | {"metrics": unpacked(part["metrics"])}) for part in kept]
    if parts:
        log.info("%d of %d chunks of %s responses are kept from before", len(parts), len(own), split)
    shown = data.trainer.is_global_zero and data.trainer.progress_bar_callback is not None
    total, done = sum(len(chunk) for _, chunk in own) * samples, sum(map(len, parts))
    with (
        data.agreed(),
        frozen(data, data.sampler_files) as model,
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
        # Every rank takes part in this, also one that has nothing to sample.
        data.generator.update(model, data.sampler_files, data.sampler_files.policy)
        for number, chunk in own:
            if known[number] is None:
                part = _chunk(data, split, chunk, model, bar)
                data.cache.save_part("responses", key, number, part.state_dict() | {"metrics": packed(part.metrics)})
                parts.append(part)
    return parts


def _chunk(data: RewardDataModule, split: Split, chunk: Tensor, model: nn.Module, bar: Any) -> Rollout:
    """Return the scored responses to some prompts, on the CPU."""
    samples, positions, before = data.samples_per_prompt, chunk.tolist(), bar.n

    def progress(done: int, _: int) -> None:
        data.on_boundary(False)
        bar.update(before + done - bar.n)

    rollout = data.respond(
        [data._encoded[split][position] for position in positions],
        positions,
        [stream for position in positions for stream in data.streams(split, position * samples, samples)],
        data.sampling,
        (model, data.sampler_files),
        progress,
    )
    return replace(rollout.to("cpu"), group_ids=rollout.prompt_index.cpu())


@contextmanager
def frozen(data: RewardDataModule, files: PolicyFiles) -> Iterator[nn.Module]:
    """Load a frozen policy onto the device, in the trainer's precision, and let go of it afterwards."""
    assert data.trainer is not None
    # Loading may draw random numbers; whether something came from the cache must not show in what follows.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        model = data.trainer.precision_plugin.convert_module(files.load(trainable=False))
    model.to(data.trainer.strategy.root_device)
    try:
        yield model
    finally:
        # The caller may still hold the name: the weights are what matters.
        model.to("meta")


def _gather(data: RewardDataModule, parts: Sequence[Rollout]) -> Rollout:
    """Return the rows of all ranks in the order of their prompts."""
    states = [state for rank in from_every_rank([part.state_dict() for part in parts]) for state in rank]
    chunks = {int(state["prompt_index"][0]): Rollout.from_state_dict(state) for state in states}
    ordered = [chunks[first] for first in sorted(chunks)]
    joined = Rollout.concatenate(ordered, data.module.policy_files.tokenizer.pad_token_id)
    index = torch.cat([chunk.prompt_index for chunk in ordered])
    # What it took to make the table is not known of one that was kept.
    whole = merged([chunk.metrics for chunk in ordered])
    metrics = {
        name: float(value)
        for name, value in whole.items()
        if name.startswith(("rollout/", "reward_failures/", "grading/"))
    }
    return replace(joined, group_ids=index, metrics=metrics)


def reference_logprobs(data: RewardDataModule, rows: Rollout, chunks: Sequence[Tensor]) -> Tensor:
    """Return log π_ref of some responses, (B, R) in nats, 0 outside them, on the CPU; every rank gets all.

    Args:
        data: its module has `reference_files` and `logprobs(batch, model)`.
        rows: in any order.
        chunks: the rows of each forward pass; every row is in one.
    """
    assert data.trainer is not None
    files: PolicyFiles = data.module.reference_files
    check_same_tokens(data, files, "reference")
    settings: dict[str, Any] = {
        "reference": files.fingerprint,
        "load": asdict(files.options),
        "precision": str(data.trainer.precision),
        "rows": digest_tensors([rows.input_ids, rows.attention_mask, rows.response_mask]),
        "temperature": rows.temperature,
    }
    key = digest(settings)
    kept = data.cache.load("references", key)
    if kept is not None:
        whole: Tensor = kept["ref_logprobs"]
        return whole
    rank, ranks = data_parallel_rank(data.trainer), data_parallel_size(data.trainer)
    own: dict[int, Tensor] = {}
    with data.agreed(), frozen(data, files) as model, data.frozen_mode():
        for number in range(rank, len(chunks), ranks):
            data.on_boundary(False)
            batch = rows.microbatch(chunks[number]).to(data.trainer.strategy.root_device)
            own[number] = data.module.logprobs(batch, model).cpu()
    parts = {number: part for theirs in from_every_rank(own) for number, part in theirs.items()}
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    whole = torch.zeros(rows.response_mask.shape, dtype=dtype)
    for number, chunk in enumerate(chunks):
        whole[chunk, : parts[number].shape[1]] = parts[number].to(dtype)
    data.cache.save("references", key, {"ref_logprobs": whole})
    return whole


def check_same_tokens(data: RewardDataModule, files: PolicyFiles, role: str) -> None:
    """Refuse another policy whose token ids mean something else than those of the module's.

    Raises:
        UserError: naming both.
    """
    own: PolicyFiles = data.module.policy_files
    if files is own:
        return
    same = files.tokenizer.get_vocab() == own.tokenizer.get_vocab()
    if not same or files.config.get_text_config().vocab_size != own.config.get_text_config().vocab_size:
        raise UserError(
            f"{role} {files.policy!r} and policy {own.policy!r} have different tokenizers or vocabularies: token ids of one mean "
            f"nothing to the other; choose a {role} of the policy's family"
        )
