"""Four extensions as a user would write them: one file each, and one overlay on configs/grpo.yaml that names it."""
