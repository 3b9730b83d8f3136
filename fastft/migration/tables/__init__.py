"""What each argument of another tool is here: one table a tool, one row an argument."""
