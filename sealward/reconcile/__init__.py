"""Is everything there? The log held against itself, and against the other party's own list.

A receipt proves that an event is in the log. That none is missing is shown by numbers that have no
hole, and by a list that somebody else kept. docs/reconcile.md says what that proves and what not.

    items.py                     what a list of the other party holds
    reading.py                   finds out what kind of list a file is, and reads it
    fhir.py hl7.py tables.py     the kinds of lists
    trail.py                     rows of the log and lists in one temporary database
    completeness.py compare.py   what is missing in the log; what only one side has

Nothing in here opens a socket or sees a patient, a payload or a token.
"""
