"""Asking a model: conversations, llama.cpp and its server, for chat, serve and the parity gate."""
