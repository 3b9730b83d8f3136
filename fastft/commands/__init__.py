"""One file a command: what it does, as a function with a typed result, and what it prints, as `..._in_terminal`."""
