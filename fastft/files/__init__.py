"""Bytes on disk: files written whole, sealed folders, safetensors read block by block."""
