"""Programs: each runs as `python -m experiments.NAME`; what they call lives in `solar`."""
