"""Tasks that judge a trained model, each by many small cells with known answers."""
