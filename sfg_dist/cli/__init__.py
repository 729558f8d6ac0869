"""The command line: one file for a group of commands, and the views that they print.

Words come in, and jobs go to the other rooms; lines, tables and exit statuses go out. A command decides nothing about
labels or fits: what it needs done, a room below does. No other room may import this one.
"""
