"""What you ask for: the recipe model, its loader, the line locator and the generated reference."""
