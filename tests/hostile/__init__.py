"""Attacks on bundles: the corpus, what runs it, and the fuzzer."""
