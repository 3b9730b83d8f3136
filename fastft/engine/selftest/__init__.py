"""What `fastft doctor --train` tries on a tiny made-up model."""
