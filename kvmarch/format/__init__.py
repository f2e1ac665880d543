"""Page-table entries and tables, without any knowledge of a kernel."""
