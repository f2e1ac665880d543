"""Results as tables, and their renderers."""
