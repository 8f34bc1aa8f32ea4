"""Five rewards that can be had without the work, and runs in which a policy finds out."""
