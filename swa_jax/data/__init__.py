"""Text: corpora, tokenizers, packing, and batches with a position."""
