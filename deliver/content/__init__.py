"""What is in a message, read within bounds when a rule or a scanner asks.

``mime`` walks its parts; ``bodies`` gives their text and ``attachments`` their files, those inside of archives and
documents included; ``ambiguity`` says what can be read in two ways. ``bounds`` limits time, bytes and depth of one
walk, and what is written in C or by others runs in a child (``limited``). Nothing here raises on a stranger's bytes.
"""
