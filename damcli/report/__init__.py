"""Figures as text and as pictures; draws nothing on the terminal and imports no torch."""
