"""Exact short cuts for the networks, each in a file of its own, with a switch of its own in the model's registry entry.

call.py      what the parts of a network are told of the call under way
keys.py      cross-attention: keys and values of a text once per job, one row per text rather than one per frame
halves.py    the two guidance halves are one until they first see their texts
times.py     time embeddings from a table
compiled.py  the blocks that repeat, through torch.compile
layout.py    the order of weights in memory
network.py   a network with these
weights.py   what is in memory once, and how much that is
decode.py    latents -> pixels
"""

from worker.networks.optimise.compiled import Compiler
from worker.networks.optimise.keys import TextKeys
from worker.networks.optimise.network import OptimisedNetwork

__all__ = ["Compiler", "OptimisedNetwork", "TextKeys"]
