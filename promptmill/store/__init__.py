"""What is kept, and every move of it: one function per transition or question, grouped by what it is about.

    files        bytes in and out                      workers      who is alive, and taking jobs from the dead
    batches      jobs submitted together               lanes        what is known about upstream x model
    claims       ready → running                       records      running → finished, waiting or ready again
    results      what came out                         upkeep       what time alone brings about
    admissions   who checks a batch's lines            inputs       what batches are made of
    views        output and error files                finished     jobs as they finish, for events
    idempotency  requests that may be sent again       sums         the ledger, added up for each lane

All take an open `Database` (or a connection inside a transaction) and the time; none reads a clock.
"""
