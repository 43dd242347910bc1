"""The D-Bus side: a connection, a dispatcher driven by the interface XML, and the objects that it shows."""
