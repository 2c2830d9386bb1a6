"""The human in the loop: tasks, a store of judgements, agreement, aggregation, export, the labelling page."""
