"""What comes out: adapter, merged and GGUF weights, written by streaming."""
