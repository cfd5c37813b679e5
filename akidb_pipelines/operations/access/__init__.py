"""The front of the Dagster webserver: who asks (a JWT), what they may do (Cedar), what was decided (the journal).

`rights` says what a mutation or permission of Dagster means in Cedar's words; `identity` reads tokens; `judge` asks Cedar; `journal` writes
decisions down; `context` and `front` put these into Dagster's webserver, whose private classes they extend: the minor version is pinned,
and tests/operations/test_attacks.py is the contract.
"""
