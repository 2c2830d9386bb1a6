"""Runs on disk: their folders, checkpoints, configs and lineage, and the current run. Needs no torch."""
