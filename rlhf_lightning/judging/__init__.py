"""A model that judges answers: comparisons in both orders, ratings, critique and revision."""
