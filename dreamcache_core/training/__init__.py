"""Training an adapter on a frozen base model: triplets, batches, the loss, the trainer, and sessions that resume."""
