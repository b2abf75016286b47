"""The rows, a module each; its `ROW` is what catalogue.py lists."""
