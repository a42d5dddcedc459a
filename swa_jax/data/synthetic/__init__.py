"""Tasks with known answers, drawn without end: a row is a function of seed and index.

A row is a dict of arrays (T,), the same for every task:

- tokens (int32): what the model reads.
- targets (int32): the answer to give at the token; 0 where none is asked.
- weights (float32): 1 where an answer is asked, else 0.
- distances (int32): tokens between the place where an answer is asked and the token
  that says it, or the first of all those that it depends on; a window of W tokens
  reaches it if distance < W. 0 where none is asked.
"""
