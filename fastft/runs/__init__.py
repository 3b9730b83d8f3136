"""The run directory: its folder, checkpoints, metrics, and the records that tell what a run stands on and gave."""
