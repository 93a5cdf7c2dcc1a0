"""Hidden states to log-probs of given tokens without the array of logits."""
