"""`rowmill watch`: a live page for a workspace; it reads what runs write, and steers them through their sockets."""
