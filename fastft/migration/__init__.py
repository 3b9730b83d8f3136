"""What other tools are told to train, read and written as a recipe."""
