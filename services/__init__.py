"""The four Sealward services: `python -m services.<name>`."""
