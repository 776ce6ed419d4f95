"""What streamed splits are read from, and how.

stream    a data set of any size: what is given, opened
sources   what all sources have in common: options, names, a digest
rows      arrays, in memory or mapped from files
decoded   what is taken and decoded one by one: files, anything with items
"""
