"""What commands share: model files and prepared rows, one attempt at a run, weights by their path."""
