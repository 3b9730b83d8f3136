"""Exports: adapter, merged and GGUF weights, written by streaming."""
