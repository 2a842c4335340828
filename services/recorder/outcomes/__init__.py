"""Rewards that come later: what the world turned out to be judges steps that were recorded, or are yet to come."""
