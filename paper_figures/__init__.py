"""Figures drawn from CSV files alone; nothing here imports `solar`."""
