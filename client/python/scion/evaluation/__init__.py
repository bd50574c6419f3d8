"""Perplexity of texts under the domains of a model: what `python -m scion.eval` is made of.

    texts       files as documents
    matrix      documents in windows, windows as perplexities, the matrix as table and JSON
    scorers     who computes log-likelihoods: a server, or the Hugging Face class in PyTorch
    local_server a moe-serve of one's own, for the time of a measurement
    plot        the matrix as SVG
"""
