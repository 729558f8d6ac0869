"""The command line: a file for each group of commands, and the views that they print.

Words come in, and jobs go to the other rooms. Lines, tables and exit statuses go out. A command decides nothing about
labels or fits: a room on a floor below does the work. No other room may import this one. The stages of a job are in
``main``, commands on a store (`sfg status`, `verify`, `repair`) in ``store``, on a saved model in ``model``.
"""
