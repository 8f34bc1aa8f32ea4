"""Measures of the source code of rl_lightning: what must be read to follow a rollout, import cycles, class sizes, prose."""
