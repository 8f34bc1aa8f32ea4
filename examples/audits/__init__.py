"""Audits of rewards: a reward model that learnt "short", buggy graders of word problems, and sound rewards."""
