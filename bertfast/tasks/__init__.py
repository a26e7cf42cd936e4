"""Fine-tuning tasks: readers, features, targets, metrics and predictions for texts, pairs, questions, tokens and choices."""
