"""Fine-tuning tasks: readers, features, losses' targets, metrics and predictions for texts, pairs, questions, tokens, choices."""
