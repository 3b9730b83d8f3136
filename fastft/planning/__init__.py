"""What will happen: schedule, upstream calls and the reason for each automatic choice. Pure arithmetic."""
