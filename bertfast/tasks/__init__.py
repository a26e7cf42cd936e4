"""Fine-tuning tasks: readers, features, losses' targets, metrics and predictions for pairs, question answering and tokens."""
