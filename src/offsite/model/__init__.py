"""How transformers lays out a causal language model, and what we put into it."""
