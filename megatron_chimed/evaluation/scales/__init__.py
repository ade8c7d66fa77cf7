"""Attitude scales: what a model agrees with, over orders, wordings and labels of the answers."""
