"""The verifier of math answers: what is extracted, how it is read, when two answers are equal."""
