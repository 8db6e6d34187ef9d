"""Inputs that no well-meaning person writes, and how many are answered."""
