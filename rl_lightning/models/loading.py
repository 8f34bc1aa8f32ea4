"""Finding and loading a policy, given as a hub name, a directory, a GGUF file or `embedded`."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from functools import cached_property
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from rl_lightning.errors import UserError
from rl_lightning.models.adapter_files import AdapterFiles
from rl_lightning.models.checks import check_finite, check_tokens
from rl_lightning.models.load_options import LoadOptions
from rl_lightning.models.location import EMBEDDED, Location, fingerprint_of, locate
from rl_lightning.models.noise import recompute_layers, silence
from rl_lightning.models.outline import is_outline, outline_of
from rl_lightning.models.packed_attention import enable_packing
from rl_lightning.models.quantized import is_packed, keep_right, left_whole, settings
from rl_lightning.models.reading import reading
from rl_lightning.models.settings import context_length, in_vocabulary, settle
from rl_lightning.text import TextFormat
from rl_lightning.typed import Typed

log = logging.getLogger(__name__)


class PolicyFiles(metaclass=Typed):
    """Configuration, tokenizer and weights of a policy; each is read on first use.

    Args:
        policy: `embedded`, a local directory in Hugging Face format, a `.gguf` file, or a name on the hub. A directory with
            only a LoRA adapter stands for the adapter's base model with the adapter merged into its weights.
        options: how to load it.

    Raises:
        UserError: from the properties and methods, if there is no such policy, its files cannot be read, or it has no tokenizer
            or no end-of-sequence token.
    """

    #: The model's name in messages.
    role = "policy"

    def __init__(self, policy: str | os.PathLike[str], options: LoadOptions | None = None) -> None:
        self.policy = os.fspath(policy)
        self.options = options or LoadOptions()

    @cached_property
    def _location(self) -> Location:
        """The arguments of transformers' `from_pretrained` that say where the files are."""
        trust = self.options.trust_remote_code
        if trust:
            log.warning(
                "%s %r: trust_remote_code is on, so Python code that comes with it may run", self.role, self.policy
            )
        return locate(self.policy, self.role, self.adapter, trust)

    @cached_property
    def adapter(self) -> AdapterFiles | None:
        """The LoRA adapter, if the policy's directory holds only that; its base model is elsewhere."""
        path = Path(self.policy).expanduser()
        return AdapterFiles(path, self.role) if AdapterFiles.are_in(path) else None

    @property
    def base(self) -> str:
        """What an exported adapter names as its base model: an absolute path, or a name on the hub.

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
        """The model's configuration, with the fixed settings of `rl_lightning.models.settings`."""
        with self._reading("the configuration"):
            return settle(AutoConfig.from_pretrained(**self._location))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the left; if it has no pad token, the end-of-sequence token serves as one."""
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
        """The tokenizer as the files hold it: the adapter's, if one was saved with it, else the base model's."""
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
        """A hash of the files of configuration, tokenizer and weights; for a name on the hub, the name and its commit."""
        located = self._location
        on_the_hub = not Path(located["pretrained_model_name_or_path"]).is_dir()
        commit = getattr(self.config, "_commit_hash", None) if on_the_hub else None
        return fingerprint_of(located, commit, self.adapter)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every token id that ends a response: the end-of-sequence tokens of tokenizer, model and generation config, and the
        chat template's end of a turn if that is one token."""
        found: set[int | None] = {self.tokenizer.eos_token_id}
        for source in (self.config, self.config.get_text_config(), self._generation_config()):
            ids = getattr(source, "eos_token_id", None)
            found |= set(ids) if isinstance(ids, list | tuple) else {ids}
        if self.tokenizer.chat_template is not None:
            found.add(TextFormat(self.tokenizer, chat=True).turn_end.token)
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        return frozenset(number for number in found if number is not None and in_vocabulary(number, size))

    def _generation_config(self) -> GenerationConfig | None:
        """Return the model's `generation_config.json`, or None: few models other than chat models have one."""
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
        """Length in tokens of the longest sequence that the model can read; None if it has no limit."""
        with self._reading("the configuration"):
            return context_length(self.config)

    def load(self, trainable: bool = True, outline: bool = False) -> PreTrainedModel:
        """Load the model.

        Args:
            trainable: False freezes the weights, as for a reference.
            outline: make it on the device `meta`, without its weights: another rank reads them.

        Returns:
            The model; its forward pass runs in evaluation mode, see `rl_lightning.models.noise`.

        Raises:
            UserError: if weights are missing or not finite.
        """
        model, missing = self._read_weights(AutoModelForCausalLM, outline=outline)
        if missing:
            raise UserError(
                f"policy {self.policy!r}: its files lack {len(missing)} weights, such as {missing[0]}, which would be "
                "random: take complete files of a causal language model"
            )
        return self._ready(model, trainable)

    def _read_weights(
        self, kind: type[_BaseAutoModelClass], labels: int | None = None, outline: bool = False
    ) -> tuple[PreTrainedModel, list[str]]:
        """Return a model, and the names of its weights that are missing in the files.

        Args:
            kind: one of transformers' `Auto` classes.
            labels: number of a classifier's labels; that of its configuration if None.
            outline: see `load`. A model that keeps tensors beside its parameters and buffers is read all the same.
        """
        place = Path(self._location["pretrained_model_name_or_path"])
        if not place.is_dir() or (place / "tokenizer_config.json").is_file():
            _ = self._given_tokenizer  # reports tokens without an embedding before the weights are read
        config, attention = copy.deepcopy(self.config), self.options.attn_implementation
        if labels is not None:
            config.num_labels = labels
        if outline:
            drawn = outline_of(
                kind, config, getattr(torch, self.options.dtype), attention, self.options.trust_remote_code
            )
            if drawn is not None:
                return drawn, []
        quantized = self._quantization()
        with self._reading("the weights"):
            # Weights are read as numbers: a file that would run code is refused.
            model, report = kind.from_pretrained(
                **self._location,
                **({"attn_implementation": attention} if attention else {}),
                dtype=getattr(torch, self.options.dtype),
                config=config,
                weights_only=True,
                **quantized,
                output_loading_info=True,
            )
        # What is read lies in the file itself, mapped into memory: whoever writes to the file later, as an export or rsync does,
        # would change it here, or end the process. Quantised weights do not, and bitsandbytes knows them under another name too.
        for tensor in [*model.parameters(), *model.buffers()]:
            if not is_packed(tensor):
                tensor.data = tensor.data.clone()
        if self.adapter is not None:
            self.adapter.merge_into(model)
        return model, sorted(report["missing_keys"])

    def _quantization(self) -> dict[str, BitsAndBytesConfig]:
        """Return the arguments of `from_pretrained` that quantise weights while they are read.

        Raises:
            UserError: for files of which that is not possible.
        """
        if self.options.quantize is None:
            return {}
        if self.adapter is not None or "gguf_file" in self._location:
            kind = "is an adapter" if self.adapter is not None else "is a GGUF file"
            raise UserError(
                f"load.quantize: {self.role} {self.policy!r} {kind}, whose weights are made whole while they are read: save it as a model "
                "directory first (HFExport with merge: true, or save_pretrained), and name that"
            )
        return {"quantization_config": settings(self.options.quantize, getattr(torch, self.options.dtype))}

    def _ready(self, model: PreTrainedModel, trainable: bool) -> PreTrainedModel:
        """Turn off noise, turn on packing and gradient checkpointing as the options say, and freeze the model or not.

        Raises:
            UserError: for a weight that is not finite.
        """
        if not is_outline(model):
            check_finite(model, f"{self.role} {self.policy!r}")
        silence(model)
        keep_right(model)
        whole = left_whole(model)
        if whole is not None:
            log.warning("%s %r: %s", self.role, self.policy, whole)
        if self.options.pack:
            enable_packing(model)
        if not trainable:
            return model.requires_grad_(False).eval()
        if self.options.gradient_checkpointing:
            recompute_layers(model, offload=self.options.gradient_checkpointing == "offload")
        return model.train()

    def _reading(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Return a context that turns any error inside it into a `UserError`: see `reading`."""
        known = f"a {self.role} is '{EMBEDDED}', a model directory, a .gguf file or a name on the hub"
        return reading(what, f"{self.role} {self.policy!r}", known)
