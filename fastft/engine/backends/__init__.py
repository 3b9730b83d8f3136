"""Loading a base model and attaching its adapter: one file an engine, each with a function `load`."""
