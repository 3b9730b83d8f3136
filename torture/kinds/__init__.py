"""The kinds of faults, one a file: `prepare` makes what their cases share, `cases` lists them."""
