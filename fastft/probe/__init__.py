"""What this machine has: base model, device, software and disk."""
