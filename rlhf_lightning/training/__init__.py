"""What every algorithm shares: row limits, precision of updates, weighted means, points to resume from."""
