"""Over-optimisation of reward models, measured with the embedded policy."""
