"""What is there: base model, device, software and disk. The only input and output before training."""
