"""Finding and loading a policy: one name for a hub model, a directory, a GGUF file or the embedded model."""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rl_lightning.errors import UserError
from rl_lightning.models.adapter_files import AdapterFiles
from rl_lightning.models.checks import check_finite, check_tokens
from rl_lightning.models.noise import recompute_layers, silence
from rl_lightning.models.packing import enable_packing
from rl_lightning.models.settings import context_length, in_vocabulary, settle
from rl_lightning.text import TextFormat

#: Files of a policy that do not say what it is: they hold state of training, or are for people.
_NO_PART_OF_IT = ("*.md", "*.pt", "*.ckpt", "training_args*", "optimizer*", "trainer_state*", ".*")

#: The name of the small policy that comes with the package.
EMBEDDED = "embedded"

log = logging.getLogger(__name__)


@dataclass
class LoadOptions:
    """How a policy is loaded.

    Args:
        dtype: of the weights in memory. Train float32 weights under `precision: bf16-mixed` unless memory forbids it.
        attn_implementation: of transformers, such as `sdpa`, `eager` or `flash_attention_2`; its own choice if null. Under
            `flex_attention` packed rows go through one compiled kernel, which needs a GPU, and all others through `sdpa`.
        pack: compute a prompt once for all its responses in a microbatch, and no padding; where the family of the model allows
            it, which needs plain causal attention in every layer, and `sdpa` or `flex_attention`. Changes memory and speed, never the gradient.
        gradient_checkpointing: recompute activations in the backward pass: about a third more time, far less memory.
        trust_remote_code: run Python code that comes with the model. Off unless you have read that code.
    """

    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attn_implementation: str | None = None
    pack: bool = True
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False


class PolicyFiles:
    """Where a policy's configuration, tokenizer and weights come from; each is read when first asked for.

    Args:
        policy: `embedded`, a local directory in Hugging Face format, a `.gguf` file, or a name on the hub. A directory with
            a LoRA adapter and nothing else is the model that it was trained on with the adapter merged into its weights.
        options: how to load it.

    Raises:
        UserError: from the properties and methods, if there is no such policy, or it has no tokenizer or stop token.
    """

    #: What messages call it.
    role = "policy"

    def __init__(self, policy: str, options: LoadOptions | None = None) -> None:
        self.policy = policy
        self.options = options or LoadOptions()

    @cached_property
    def _location(self) -> dict[str, Any]:
        """Return the arguments that tell transformers where the files are."""
        trust = {"trust_remote_code": self.options.trust_remote_code}
        if self.options.trust_remote_code:
            log.warning(
                "%s %r: trust_remote_code is on, so Python code that comes with it may run", self.role, self.policy
            )
        if self.policy == EMBEDDED:
            return {"pretrained_model_name_or_path": str(files("rl_lightning") / "assets" / "chain_sum"), **trust}
        path = Path(self.policy).expanduser()
        if self.adapter is not None:
            return {"pretrained_model_name_or_path": self.adapter.config()["base_model_name_or_path"], **trust}
        if path.suffix == ".gguf":
            if not path.is_file():
                raise UserError(f"{self.role}: there is no file {path}{_near_misses(path)}")
            return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, **trust}
        if path.is_dir() and not (path / "config.json").is_file():
            raise UserError(
                f"{self.role}: the directory {path} has no config.json: give a Hugging Face model directory"
            )
        if not path.is_dir() and (path.is_absolute() or self.policy.startswith((".", "~"))):
            raise UserError(f"{self.role}: there is no directory {path}{_near_misses(path)}")
        return {"pretrained_model_name_or_path": str(path) if path.is_dir() else self.policy, **trust}

    @cached_property
    def adapter(self) -> AdapterFiles | None:
        """The adapter, if the policy is one beside the model that it was trained on."""
        path = Path(self.policy).expanduser()
        return AdapterFiles(path, self.role) if AdapterFiles.are_in(path) else None

    @property
    def base(self) -> str:
        """Where others find the model without an adapter: a whole path, or a name on the hub.

        Raises:
            UserError: for a `.gguf` file, and for an adapter that was merged while loading.
        """
        place = str(self._location["pretrained_model_name_or_path"])
        if "gguf_file" in self._location or self.adapter is not None:
            raise UserError(
                f"{self.role} {self.policy!r} is no model directory that an adapter could name as its base: export with merge: true"
            )
        return str(Path(place).resolve()) if Path(place).is_dir() else place

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration, but for what it must not decide; see `rl_lightning.models.settings`."""
        with self._reading("the configuration"):
            return settle(AutoConfig.from_pretrained(**self._location))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the left; its pad token is a stop token if it has none of its own."""
        tokenizer = self._given_tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"policy {self.policy!r}: its tokenizer has no end-of-sequence token, so no response would ever end; "
                "set eos_token in tokenizer_config.json"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _given_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer as it is in the files: an adapter's own, where it has one beside it."""
        place = self._location
        if self.adapter is not None and self.adapter.has_tokenizer:
            place = {**place, "pretrained_model_name_or_path": str(self.adapter.directory)}
        with self._reading("the tokenizer"):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**place, config=self.config)
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        check_tokens(tokenizer, size, f"{self.role} {self.policy!r}")
        return tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the contents of configuration, tokenizer and weights; for a name on the hub, the name and its revision."""
        place = Path(self._location["pretrained_model_name_or_path"])
        whole = hashlib.sha256()
        if not place.is_dir():
            name = f"{place}@{getattr(self.config, '_commit_hash', None)}"
            if self.adapter is None:
                return name
            whole.update(name.encode())
        only = self._location.get("gguf_file")
        places = ([place] if place.is_dir() else []) + ([] if self.adapter is None else [self.adapter.directory])
        paths = [place / only] if only else sorted(path for one in places for path in one.iterdir() if path.is_file())
        for path in paths:
            if not any(path.match(pattern) for pattern in _NO_PART_OF_IT):
                with path.open("rb") as file:
                    whole.update(f"{path.name}:{path.stat().st_size}:".encode())
                    while block := file.read(1 << 22):
                        whole.update(block)
        return whole.hexdigest()[:16]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every token id that ends a response: the tokenizer's, the model's and those for generation, and the end of a turn
        in the chat template, if that is one token."""
        found: set[int | None] = {self.tokenizer.eos_token_id}
        for source in (self.config, self.config.get_text_config(), self._generation_config()):
            ids = getattr(source, "eos_token_id", None)
            found |= set(ids) if isinstance(ids, list | tuple) else {ids}
        if self.tokenizer.chat_template is not None:
            found.add(TextFormat(self.tokenizer, chat=True).turn_end.token)
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        return frozenset(number for number in found if number is not None and in_vocabulary(number, size))

    def _generation_config(self) -> GenerationConfig | None:
        """Return the model's settings for generation; most models that are no chat models have none."""
        place = self._location["pretrained_model_name_or_path"]
        if Path(place).is_dir():
            if not (Path(place) / "generation_config.json").is_file():
                return None
            with self._reading("generation_config.json"):
                return GenerationConfig.from_pretrained(place)
        with contextlib.suppress(OSError):
            return GenerationConfig.from_pretrained(place)
        return None

    @cached_property
    def context_length(self) -> int | None:
        """Longest sequence in tokens, if the model has a limit."""
        with self._reading("the configuration"):
            return context_length(self.config)

    def load(self, trainable: bool = True) -> PreTrainedModel:
        """Load the weights.

        Args:
            trainable: False freezes them, for a reference.

        Returns:
            The model; what it computes in training mode is what it computes in evaluation mode, see `rl_lightning.models.noise`.
        """
        model, missing = self._read_weights(AutoModelForCausalLM)
        if missing:
            raise UserError(
                f"policy {self.policy!r}: its files lack {len(missing)} weights, such as {missing[0]}, which would be "
                "random; are they complete, and of a causal language model?"
            )
        return self._ready(model, trainable)

    def _read_weights(self, kind: Any, labels: int | None = None) -> tuple[PreTrainedModel, list[str]]:
        """Return a model, and the names of the weights that no file has.

        Args:
            kind: one of transformers' `Auto` classes.
            labels: of a classifier; those in its configuration if None.
        """
        place = Path(self._location["pretrained_model_name_or_path"])
        if not place.is_dir() or (place / "tokenizer_config.json").is_file():
            _ = self._given_tokenizer  # tokens that the model lacks are told before its weights are read
        extra: dict[str, Any] = {"dtype": getattr(torch, self.options.dtype), "config": copy.deepcopy(self.config)}
        if self.options.attn_implementation:
            extra["attn_implementation"] = self.options.attn_implementation
        if labels is not None:
            extra["config"].num_labels = labels
        with self._reading("the weights"):
            # Weights are read as numbers: a file that would run code is refused.
            model, report = kind.from_pretrained(**self._location, **extra, weights_only=True, output_loading_info=True)
        if self.adapter is not None:
            self.adapter.merge_into(model)
        return model, sorted(report["missing_keys"])

    def _ready(self, model: PreTrainedModel, trainable: bool) -> PreTrainedModel:
        """Switch noise off, packing on, and gradients as wanted.

        Raises:
            UserError: for a weight that is not finite.
        """
        check_finite(model, f"{self.role} {self.policy!r}")
        silence(model)
        if self.options.pack:
            enable_packing(model)
        if not trainable:
            return model.requires_grad_(False).eval()
        if self.options.gradient_checkpointing:
            recompute_layers(model)
        return model.train()

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever a parser makes of a file that is none of its kind
            reason = _reason(error)
            if "trust_remote_code" in str(error):
                reason = (
                    "it needs Python code that comes with the model: read that code, then set "
                    "model.init_args.load.trust_remote_code to true"
                )
            raise UserError(
                f"{self.role} {self.policy!r}: cannot read {what}: {reason} "
                f"(a {self.role} is '{EMBEDDED}', a model directory, a .gguf file or a name on the hub)"
            ) from error


def _reason(error: Exception) -> str:
    """Return what a parser's error says, in one line."""
    if isinstance(error, pickle.UnpicklingError):  # its own words advise to run the code in the file
        return "it is no file of weights, or holds code, which is never run: save the weights as safetensors"
    text = str(error).strip()
    # Some say no more than the key or the number that they stumbled over.
    return text.splitlines()[0] if " " in text else f"{type(error).__name__} {text}".strip()


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers from reporting that a new head is new, that an old one is left out, or that a plan to shard names
    neither."""
    reporters = [
        logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")
    ]
    levels = [reporter.level for reporter in reporters]
    for reporter in reporters:
        reporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for reporter, level in zip(reporters, levels, strict=True):
            reporter.setLevel(level)


def _near_misses(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
