"""What people see: the live view, tables, sizes and durations."""
