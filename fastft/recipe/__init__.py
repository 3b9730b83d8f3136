"""The recipe: its model, loader, rules, line locator and generated reference."""
