"""Needles in a haystack, in the manner of RULER (Hsieh et al. 2024, arXiv:2404.06654).

A needle says the value of a key; somewhere behind all of them a question repeats the
needle's words up to the value. `config.py` says how hard that is, `sentences.py` draws
needles and question, `prompt.py` sets them among any number of tokens to be answered,
`document.py` among text to be trained on.
"""
