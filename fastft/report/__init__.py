"""What people see: metrics, the live view, tables."""
