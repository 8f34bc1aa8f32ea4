"""Files of sequence classifiers, which give a text a score: loading one to train as a reward model, or to use as one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rl_lightning.errors import UserError
from rl_lightning.models.forward import accepts
from rl_lightning.models.loading import PolicyFiles
from rl_lightning.models.packed_attention import masks_on_host
from rl_lightning.models.reading import without_load_report
from rl_lightning.models.seeding import seeded
from rl_lightning.travel import carried, on_host

log = logging.getLogger(__name__)


class ClassifierFiles(PolicyFiles):
    """Files of a sequence classifier, from the same places as a policy's; its tokenizer needs no end-of-sequence token.

    Args:
        policy, options: see `PolicyFiles`.
    """

    role = "reward model"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the right with the pad token of the classifier's configuration."""
        tokenizer = self._given_tokenizer
        tokenizer.padding_side = "right"
        pad_id = self.config.get_text_config().pad_token_id
        pad = None if pad_id is None else tokenizer.convert_ids_to_tokens(pad_id)
        if self.is_classifier and pad is not None:
            tokenizer.pad_token = pad
        elif tokenizer.pad_token in (None, tokenizer.eos_token):
            self._give_pad_token(tokenizer)
        return tokenizer

    def _give_pad_token(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give the tokenizer a pad token other than the end-of-sequence token, if it has one.

        Classifiers of transformers read the score at the last token that is not the pad token. If the end-of-sequence token is
        the pad token, that is the token before it.
        """
        free = [
            token for token in (tokenizer.unk_token, tokenizer.bos_token) if token not in (None, tokenizer.eos_token)
        ]
        tokenizer.pad_token = free[0] if free else tokenizer.eos_token
        if not free:
            log.warning(
                "%s %r: its tokenizer has no token to pad with but the end of a sequence, so scores are read at the token "
                "before the end",
                self.role,
                self.policy,
            )

    @property
    def is_classifier(self) -> bool:
        """Whether the files hold a sequence classifier; otherwise they hold a causal language model."""
        return any("SequenceClassification" in name for name in self.config.architectures or ())

    @property
    def labels(self) -> list[str]:
        """The names of the classifier's labels, in the order of its logits."""
        return [str(name) for _, name in sorted((self.config.id2label or {}).items())]

    def load_scorer(self, outline: bool = False) -> PreTrainedModel:
        """Load a trainable classifier with one label; a causal language model gets a new head in place of its own.

        The new head's weights are a function of the run's seed alone.

        Args:
            outline: see `PolicyFiles.load`.

        Raises:
            UserError: for a classifier with several labels, or files that lack weights other than the head's.
        """
        if self.is_classifier and len(self.labels) != 1:
            raise UserError(
                f"{self.role} {self.policy!r} tells {len(self.labels)} labels apart ({', '.join(self.labels[:5])}): start "
                "from a classifier of one label, or from a causal language model, which gets a new head"
            )
        with seeded(), without_load_report():
            model, missing = self._read_weights(AutoModelForSequenceClassification, labels=1, outline=outline)
        self._refuse_missing([n for n in missing if self.is_classifier or n.startswith(f"{model.base_model_prefix}.")])
        self._tell_padding(model)
        return self._ready(model, trainable=True)

    def load_judge(self) -> PreTrainedModel:
        """Load a trained classifier, frozen, with any number of labels.

        Raises:
            UserError: if the files hold no classifier, or lack some of its weights.
        """
        self.check_classifier()
        with without_load_report():
            model, missing = self._read_weights(AutoModelForSequenceClassification)
        self._refuse_missing(missing)
        self._tell_padding(model)
        return self._ready(model, trainable=False)

    def _tell_padding(self, model: PreTrainedModel) -> None:
        """Set the model's pad token to the tokenizer's, also for saving."""
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id

    def check_classifier(self) -> None:
        """Refuse a model without a trained classification head.

        Raises:
            UserError: naming what the model is.
        """
        if not self.is_classifier:
            kind = ", ".join(self.config.architectures or ["model of unknown kind"])
            raise UserError(
                f"{self.role} {self.policy!r} is a {kind}, not a sequence classifier: train one from it with "
                "--config reward_model"
            )

    def _refuse_missing(self, missing: Sequence[str]) -> None:
        if missing:
            raise UserError(
                f"{self.role} {self.policy!r}: its files lack {len(missing)} weights, such as {missing[0]}, which would be random: "
                "take complete files"
            )


def classifier_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return a classifier's logits, (B, labels) in at least float32, for rows with padding anywhere.

    Classifiers of transformers look for the last token that is not the pad token, and some count positions from the first
    column. So tokens are moved to the left, columns of padding alone are dropped, and padding becomes the pad token P:

        input_ids   x x a b x c        attention_mask   0 0 1 1 0 1        →   a b c
                    x x x d e x                         0 0 0 1 1 0            d e P

    Args:
        model: a sequence classifier of transformers, with a pad token in its configuration.
        input_ids, attention_mask: (B, T).
    """
    config = cast(PreTrainedModel, model).config
    here, real = on_host(input_ids), on_host(attention_mask)
    order, lengths = real.long().argsort(stable=True, dim=1, descending=True), real.sum(1)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    ids = here.gather(1, order)[:, : mask.shape[1]].masked_fill(~mask, config.get_text_config().pad_token_id)
    ids, mask = carried([ids, mask], input_ids.device)
    extra = {"use_cache": False} if accepts(model, "use_cache") else {}
    given = mask if masks_on_host(model, mask) else mask.long()
    logits: Tensor = model(input_ids=ids, attention_mask=given, **extra).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
