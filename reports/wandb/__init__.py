"""Weights & Biases: what a run sends there, and what is made of it."""

FOLDER = "wandb"
"""The name of the folder in which a run keeps what is sent; W&B copies records there, so none is looked for in it."""
