"""The other generators: ``kinds`` lists them, with how each is built, chosen (``choice``) and fitted under the clock
(``fitting``).

A prepared table comes in, and a fitted method goes out, which the folder above judges as it judges ours. These files
know nothing of the pipeline of this package, so that a change of the generator cannot change its peers.
"""
