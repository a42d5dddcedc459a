"""The races of the matrix memory: mLSTM with either gate, and linear attention."""
