"""What the engine does for each task besides answers."""
