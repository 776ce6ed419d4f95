"""The k-th value of many without sorting them."""
