"""The run directory: its folder, checkpoints, metrics, and the records of what a run was made from and measured."""
