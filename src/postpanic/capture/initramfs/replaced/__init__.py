"""
Modules that stand in the image in place of larger ones of the same job.

None of them is imported here: their text goes into the image, under the name of
the module that they replace.
"""
