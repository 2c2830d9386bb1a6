"""What every algorithm shares: limits of rows, precision of updates, weighted means, points to resume from."""
