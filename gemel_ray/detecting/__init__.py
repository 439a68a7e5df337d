"""How mentions are found in texts that come without: by the knowledge base's names (names.py), less those
that are mostly ordinary words (linked.py), or by a model that tags names (tagger.py).
"""
