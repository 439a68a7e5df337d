"""How mentions are found in texts: by the knowledge base's names (names.py), without those that are mostly
ordinary words (linked.py), or by a model that tags names (tagger.py).
"""
