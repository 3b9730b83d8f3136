"""One GGUF file for llama.cpp and Ollama, straight from base + adapter: no 16-bit copy, no llama.cpp to build."""
