"""Files and command lines of other training tools, read and written as a recipe."""
