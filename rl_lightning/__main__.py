"""`python -m rl_lightning fit --config grpo`, the same as `rl-lightning fit --config grpo`."""

from rl_lightning.cli.main import main

if __name__ == "__main__":
    main()
