"""Loading policies and running them forward."""

from rl_lightning.models.forward import response_logits, response_outputs
from rl_lightning.models.loading import EMBEDDED, LoadOptions, PolicyFiles

__all__ = ["EMBEDDED", "LoadOptions", "PolicyFiles", "response_logits", "response_outputs"]
