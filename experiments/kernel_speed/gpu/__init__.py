"""The GPU suite: races of window attention, decoding, and their floors."""
