"""Distributed Transformer inference over slow links: ASTRA, PRISM and the methods they are compared with."""
