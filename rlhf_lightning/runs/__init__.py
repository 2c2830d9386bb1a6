"""Runs on the disk: their folders, checkpoints, configs and lineage, and the one that is under way. Needs no torch."""
