"""The strong lottery ticket hypothesis, built."""
