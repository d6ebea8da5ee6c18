"""Training an adapter on a frozen base model: triplets, batches, the loss, and a session that can be resumed."""
