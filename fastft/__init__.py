"""fastft fine-tunes language models fast, from one TOML recipe, and hands back weights that were proven to work."""

__version__ = "0.1.0"
