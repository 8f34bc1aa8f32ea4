"""`python -m rl_lightning fit --config configs/grpo.yaml`."""

from rl_lightning.cli import main

if __name__ == "__main__":
    main()
