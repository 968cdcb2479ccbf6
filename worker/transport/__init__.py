"""HTTP/1.1 to one upstream, because none of the fast clients lets go of a call that is still thinking.

    route.py     where the upstream is: origin, TLS, proxy
    headers.py   what is said with every request
    pool.py      its connections: opened, kept alive, closed
    resolver.py  its addresses
    tunnel.py    CONNECT, through a proxy
    wire.py      one connection
    call.py      one call on it
    inflate.py   gzip and deflate
    faults.py    what went wrong, in words

Only `worker/upstream.py` uses it. docs/transport.md compares it with the clients there are.
"""
