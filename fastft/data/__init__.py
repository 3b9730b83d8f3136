"""Training rows: readers and formats make one Example a row; rendering decides which tokens carry loss."""
