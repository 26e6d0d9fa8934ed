"""Information, Markov chains and stability of attention patterns."""
