import os

# How often OpenMP's threads look for work before they sleep (libgomp, read when PyTorch is loaded): by default so long that they take the
# processors from those who send answers and read them; not at all, and waking them takes as long as a step of one token.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
