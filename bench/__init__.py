"""Speed beside plain C; `python -m bench`."""
