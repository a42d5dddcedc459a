"""Does a short window train a better memory?"""
