"""The other generators: how each is built, how its configuration is chosen, and how it is fitted under the clock.

A prepared table comes in (``tables``); a fitted method goes out, which is judged as ours is (``judging``). These files
know nothing of the pipeline of this package, so that a change of the generator cannot change its peers.
"""
